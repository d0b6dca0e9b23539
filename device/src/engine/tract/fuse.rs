//! Finds the linear layers of an int8 graph and makes one node of each.
//!
//! ```text
//! x ─ DynamicQuantizeLinear ┬ MatMulInteger ─ Cast ─ Mul ┬ Concat      x ─ SaInt8Linear
//!                           └ MatMulInteger ─ Cast ─ Mul ┘        →
//! ```
//! A layer is as `sa-export` writes it: 8-bit weights with the zero point 0 and a scale per output, split along the outputs or not.
//! Whatever looks different in any way stays as it is, and tract computes it by its own operators.

use std::collections::{HashMap, HashSet};

use tract_onnx::pb::attribute_proto::AttributeType;
use tract_onnx::pb::tensor_proto::DataType;
use tract_onnx::pb::{AttributeProto, GraphProto, NodeProto, TensorProto};

use super::linear::{INPUTS, NAME, OUTPUTS};
use super::products::MOST_INPUTS;

/// Marks weights that were transposed; no name in a graph of ours ends so.
const BY_OUTPUTS: &str = "/by-outputs";

/// Rewrites the layers of a graph. A graph with others inside, which may read anything of it, stays as it is; so does one that has names
/// or nodes of ours already.
pub fn fuse(graph: &mut GraphProto) {
    let ours = |node: &NodeProto| node.op_type == NAME || node.attribute.iter().any(|a| a.g.is_some() || !a.graphs.is_empty());
    if graph.node.iter().any(ours) || graph.initializer.iter().any(|constant| constant.name.ends_with(BY_OUTPUTS)) {
        return;
    }
    let layers = find(graph);
    let gone: HashSet<usize> = layers.iter().flat_map(|layer| layer.nodes.iter().copied()).collect();
    // Layers may share their weights.
    let weights: HashMap<String, [usize; 2]> =
        layers.iter().flat_map(|layer| &layer.parts).map(|part| (part.weights.clone(), [part.inputs, part.outputs])).collect();
    // A node reads what nodes before it write: the first one's place is right.
    let mut drawn: HashMap<usize, NodeProto> = layers.into_iter().map(|layer| (layer.nodes[0], layer.drawn())).collect();
    for (number, node) in std::mem::take(&mut graph.node).into_iter().enumerate() {
        if let Some(layer) = drawn.remove(&number) {
            graph.node.push(layer);
        } else if !gone.contains(&number) {
            graph.node.push(node);
        }
    }
    let used: HashSet<&String> = graph.node.iter().flat_map(|node| &node.input).chain(graph.output.iter().map(|o| &o.name)).collect();
    for constant in std::mem::take(&mut graph.initializer) {
        if let Some(&[inputs, outputs]) = weights.get(&constant.name) {
            graph.initializer.push(by_outputs(&constant, inputs, outputs));
        }
        // One at a time: a second copy of all weights would not fit a small board.
        if used.contains(&constant.name) || !weights.contains_key(&constant.name) {
            graph.initializer.push(constant);
        }
    }
}

/// Weights and scales of some of a layer's outputs, by name.
struct Part {
    weights: String,
    scales: String,
    inputs: usize,
    outputs: usize,
}

struct Layer {
    name: String,
    input: String,
    output: String,
    parts: Vec<Part>,
    /// The nodes that it replaces, the first of them first.
    nodes: Vec<usize>,
}

impl Layer {
    fn drawn(self) -> NodeProto {
        let number = |name: &str, value: usize| AttributeProto {
            name: name.to_owned(),
            i: value as i64,
            r#type: AttributeType::Int as i32,
            ..AttributeProto::default()
        };
        let outputs = self.parts.iter().map(|part| part.outputs).sum();
        NodeProto {
            name: self.name,
            op_type: NAME.to_owned(),
            attribute: vec![number(INPUTS, self.parts[0].inputs), number(OUTPUTS, outputs)],
            input: std::iter::once(self.input)
                .chain(self.parts.into_iter().flat_map(|part| [part.weights + BY_OUTPUTS, part.scales]))
                .collect(),
            output: vec![self.output],
            ..NodeProto::default()
        }
    }
}

/// Who writes and who reads what.
struct Wires<'a> {
    graph: &'a GraphProto,
    constants: HashMap<&'a str, &'a TensorProto>,
    writer: HashMap<&'a str, usize>,
    readers: HashMap<&'a str, Vec<usize>>,
}

fn find(graph: &GraphProto) -> Vec<Layer> {
    let mut wires = Wires { graph, constants: HashMap::new(), writer: HashMap::new(), readers: HashMap::new() };
    // What is an input too may be given another value, and of two of one name nobody knows which is meant.
    let mut names: HashMap<&str, usize> = HashMap::new();
    let all = graph.initializer.iter().map(|constant| &constant.name).chain(graph.input.iter().map(|input| &input.name));
    all.for_each(|name| *names.entry(name).or_default() += 1);
    let once = graph.initializer.iter().filter(|constant| names[constant.name.as_str()] == 1);
    wires.constants.extend(once.map(|constant| (constant.name.as_str(), constant)));
    for (number, node) in graph.node.iter().enumerate() {
        for name in &node.output {
            wires.writer.insert(name, number);
        }
        for name in &node.input {
            wires.readers.entry(name).or_default().push(number);
        }
    }
    for output in &graph.output {
        // What leaves the graph is read by somebody who is no node.
        wires.readers.entry(&output.name).or_default().push(usize::MAX);
    }
    let numbers = 0..graph.node.len();
    numbers.filter(|number| graph.node[*number].op_type == "DynamicQuantizeLinear").filter_map(|number| wires.layer(number)).collect()
}

impl<'a> Wires<'a> {
    fn readers(&self, name: &str) -> &[usize] {
        self.readers.get(name).map_or(&[], Vec::as_slice)
    }

    /// The one node that reads a value, if it is of this kind.
    fn reader(&self, name: &str, kind: &str) -> Option<(usize, &'a NodeProto)> {
        let [number] = self.readers(name) else { return None };
        let node = self.graph.node.get(*number)?;
        (node.op_type == kind && node.output.len() == 1).then_some((*number, node))
    }

    fn layer(&self, quantise: usize) -> Option<Layer> {
        let node = &self.graph.node[quantise];
        let ([input], [levels, scale, zero]) = (&node.input[..], &node.output[..]) else { return None };
        let mut nodes = vec![quantise];
        let mut parts = Vec::new();
        let mut outputs = Vec::new();
        for product in self.readers(levels) {
            let (part, output, of_part) = self.part(*product, levels, scale, zero)?;
            parts.push(part);
            outputs.push(output);
            nodes.extend(of_part);
        }
        // Nothing else may want what goes away.
        if parts.is_empty() || self.readers(zero).len() != parts.len() || self.readers(scale).len() != parts.len() {
            return None;
        }
        if parts.iter().any(|part| part.inputs != parts[0].inputs) {
            return None;
        }
        let output = if let [output] = outputs[..] {
            output
        } else {
            let (number, joined) = self.reader(outputs[0], "Concat")?;
            let last = joined.attribute.iter().any(|attribute| attribute.name == "axis" && attribute.i == -1);
            if !last || joined.input != outputs || outputs.iter().any(|output| self.readers(output).len() != 1) {
                return None;
            }
            nodes.push(number);
            &joined.output[0]
        };
        Some(Layer { name: node.name.clone(), input: input.clone(), output: output.to_owned(), parts, nodes })
    }

    /// MatMulInteger → Cast → Mul with the scales' Mul: the weights, what it writes, and its nodes.
    fn part(&self, product: usize, levels: &str, scale: &str, zero: &str) -> Option<(Part, &'a str, [usize; 4])> {
        let node = self.graph.node.get(product)?;
        let [x, weights, x_zero, rest @ ..] = &node.input[..] else { return None };
        if node.op_type != "MatMulInteger" || x != levels || x_zero != zero || node.output.len() != 1 {
            return None;
        }
        if let [weights_zero, ..] = rest {
            let constant = self.constants.get(weights_zero.as_str())?;
            if constant.raw_data.is_empty() || constant.raw_data.iter().any(|byte| *byte != 0) {
                return None;
            }
        }
        let (cast, wide) = self.reader(&node.output[0], "Cast")?;
        let to_f32 = wide.attribute.iter().any(|attribute| attribute.name == "to" && attribute.i == DataType::Float as i64);
        let (scaled, output) = self.reader(&wide.output[0], "Mul")?;
        let [a, b] = &output.input[..] else { return None };
        let factor = if *a == wide.output[0] { b } else { a };
        let (scaling, factors) = self.writer.get(factor.as_str()).map(|number| (*number, &self.graph.node[*number]))?;
        let [a, b] = &factors.input[..] else { return None };
        let scales = if a == scale { b } else { a };
        let fits = factors.op_type == "Mul" && factors.output.len() == 1 && (a == scale) != (b == scale) && self.readers(factor).len() == 1;
        let (tensor, factors) = (self.constants.get(weights.as_str())?, self.constants.get(scales.as_str())?);
        let [inputs, outputs] = tensor.dims[..] else { return None };
        let (inputs, outputs) = (usize::try_from(inputs).ok()?, usize::try_from(outputs).ok()?);
        let eight_bits = tensor.data_type == DataType::Int8 as i32 && tensor.raw_data.len() == inputs.checked_mul(outputs)?;
        let single = factors.data_type == DataType::Float as i32 && factors.dims[..] == [outputs as i64];
        let sane = (1..=MOST_INPUTS).contains(&inputs) && outputs > 0;
        let part = Part { weights: weights.clone(), scales: scales.clone(), inputs, outputs };
        (to_f32 && fits && eight_bits && single && sane).then_some((part, output.output[0].as_str(), [product, cast, scaling, scaled]))
    }
}

/// Weights `[inputs, outputs]` as `[outputs, inputs]`: an output's are then read in a row.
fn by_outputs(weights: &TensorProto, inputs: usize, outputs: usize) -> TensorProto {
    /// In squares, so that neither side is read or written all over the memory.
    const SIDE: usize = 64;
    let mut raw_data = vec![0; weights.raw_data.len()];
    for first in (0..outputs).step_by(SIDE) {
        let last = (first + SIDE).min(outputs);
        for begin in (0..inputs).step_by(SIDE) {
            for input in begin..(begin + SIDE).min(inputs) {
                for output in first..last {
                    raw_data[output * inputs + input] = weights.raw_data[input * outputs + output];
                }
            }
        }
    }
    let dims = vec![outputs as i64, inputs as i64];
    TensorProto { name: weights.name.clone() + BY_OUTPUTS, dims, data_type: weights.data_type, raw_data, ..TensorProto::default() }
}

#[cfg(test)]
mod tests {
    use tract_onnx::pb::tensor_shape_proto::{Dimension, dimension};
    use tract_onnx::pb::{ModelProto, OperatorSetIdProto, TensorShapeProto, TypeProto, ValueInfoProto, type_proto};
    use tract_onnx::prelude::*;

    use super::super::linear::build;
    use super::*;

    const INPUT_WIDTH: usize = 70;
    const PARTS: [usize; 2] = [9, 4];

    fn node(kind: &str, input: &[&str], output: &[&str], attribute: Option<(&str, i64)>) -> NodeProto {
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        let attribute = attribute.map(|(name, i)| AttributeProto {
            name: name.to_owned(),
            i,
            r#type: AttributeType::Int as i32,
            ..AttributeProto::default()
        });
        NodeProto {
            name: output[0].to_owned(),
            op_type: kind.to_owned(),
            input: names(input),
            output: names(output),
            attribute: attribute.into_iter().collect(),
            ..NodeProto::default()
        }
    }

    fn constant(name: &str, data_type: DataType, dims: &[usize], raw_data: Vec<u8>) -> TensorProto {
        let dims = dims.iter().map(|n| *n as i64).collect();
        TensorProto { name: name.to_owned(), data_type: data_type as i32, dims, raw_data, ..TensorProto::default() }
    }

    fn value(name: &str, shape: &[usize]) -> ValueInfoProto {
        let dimension = |n: &usize| Dimension { value: Some(dimension::Value::DimValue(*n as i64)), ..Dimension::default() };
        let shape = Some(TensorShapeProto { dim: shape.iter().map(dimension).collect() });
        let tensor = type_proto::Tensor { elem_type: DataType::Float as i32, shape };
        let r#type = Some(TypeProto { value: Some(type_proto::Value::TensorType(tensor)), ..TypeProto::default() });
        ValueInfoProto { name: name.to_owned(), r#type, ..ValueInfoProto::default() }
    }

    /// A layer as the exporter writes it, split in two.
    fn layer(rows: usize) -> GraphProto {
        let mut graph = GraphProto {
            name: "layer".to_owned(),
            input: vec![value("x", &[1, rows, INPUT_WIDTH])],
            output: vec![value("y", &[1, rows, PARTS[0] + PARTS[1]])],
            node: vec![node("DynamicQuantizeLinear", &["x"], &["x8", "x_scale", "x_zero"], None)],
            initializer: vec![constant("zero", DataType::Int8, &[], vec![0])],
            ..GraphProto::default()
        };
        for (number, outputs) in PARTS.into_iter().enumerate() {
            let name = |what: &str| format!("{what}{number}");
            let weights = (0..INPUT_WIDTH * outputs).map(|i| (i * 83 % 255) as u8).collect();
            let scales = (0..outputs).flat_map(|o| (0.01 + 0.003 * o as f32).to_le_bytes()).collect();
            graph.initializer.push(constant(&name("w"), DataType::Int8, &[INPUT_WIDTH, outputs], weights));
            graph.initializer.push(constant(&name("s"), DataType::Float, &[outputs], scales));
            graph.node.extend([
                node("MatMulInteger", &["x8", &name("w"), "x_zero", "zero"], &[&name("product")], None),
                node("Cast", &[&name("product")], &[&name("wide")], Some(("to", DataType::Float as i64))),
                node("Mul", &["x_scale", &name("s")], &[&name("scale")], None),
                node("Mul", &[&name("wide"), &name("scale")], &[&name("y")], None),
            ]);
        }
        graph.node.push(node("Concat", &["y0", "y1"], &["y"], Some(("axis", -1))));
        graph
    }

    fn kinds(graph: &GraphProto) -> Vec<&str> {
        graph.node.iter().map(|node| node.op_type.as_str()).collect()
    }

    fn run(graph: GraphProto, x: &Tensor) -> Vec<f32> {
        let mut onnx = onnx();
        onnx.op_register.insert(NAME, build);
        let opset_import = vec![OperatorSetIdProto { version: 17, ..OperatorSetIdProto::default() }];
        let model = ModelProto { ir_version: 8, opset_import, graph: Some(graph), ..ModelProto::default() };
        let plan = onnx.model_for_proto_model(&model).and_then(|m| m.into_optimized()).and_then(|m| m.into_runnable());
        let y = plan.expect("tract loads it").run(tvec!(x.clone().into())).expect("runs");
        y[0].to_plain_array_view::<f32>().expect("f32").iter().copied().collect()
    }

    /// One row and many, on and off the tiles: to the last bit what tract computes with ONNX's operators.
    #[test]
    fn a_layer_becomes_one_node_that_computes_the_same() {
        for rows in [1, 3, 10] {
            let graph = layer(rows);
            let mut fused = graph.clone();
            fuse(&mut fused);
            assert_eq!(kinds(&fused), [NAME]);
            let names: Vec<&str> = fused.initializer.iter().map(|constant| constant.name.as_str()).collect();
            assert_eq!(names, ["zero", "w0/by-outputs", "s0", "w1/by-outputs", "s1"]);
            let x: Vec<f32> = (0..rows * INPUT_WIDTH).map(|i| ((i * 7919) % 1009) as f32 * 0.01 - 3.0).collect();
            let x = Tensor::from_shape(&[1, rows, INPUT_WIDTH], &x).expect("fits");
            assert_eq!(run(fused, &x), run(graph, &x), "{rows} rows");
        }
    }

    #[test]
    fn two_layers_may_share_their_weights() {
        let mut graph = layer(1);
        let second: Vec<NodeProto> = graph.node.clone();
        for mut node in second {
            let constants = ["w0", "w1", "s0", "s1", "zero"];
            let renamed = |name: &String| match name.as_str() {
                "x" => "y".to_owned(),
                constant if constants.contains(&constant) => name.clone(),
                _ => format!("{name}/again"),
            };
            node.input = node.input.iter().map(renamed).collect();
            node.output = node.output.iter().map(|name| format!("{name}/again")).collect();
            graph.node.push(node);
        }
        fuse(&mut graph);
        assert_eq!(kinds(&graph), [NAME, NAME]);
        assert_eq!(graph.initializer.len(), 5);
    }

    /// Anything else stays as it was.
    #[test]
    fn what_looks_different_is_left_alone() {
        type Change = fn(&mut GraphProto);
        let changes: [(&str, Change); 11] = [
            ("weights with a zero point", |graph| graph.initializer[0].raw_data = vec![3]),
            ("a value that somebody else reads", |graph| graph.output.push(value("wide0", &[1, 1, 9]))),
            ("levels that somebody else reads", |graph| graph.node.push(node("Cast", &["x8"], &["z"], Some(("to", 1))))),
            ("a scale that somebody else reads", |graph| graph.node.push(node("Neg", &["x_scale"], &["z"], None))),
            ("parts in another order", |graph| graph.node.last_mut().expect("a Concat").input.reverse()),
            ("a truncated weight", |graph| graph.initializer[1].raw_data.truncate(5)),
            ("weights that are an input, too", |graph| graph.input.push(value("w0", &[INPUT_WIDTH, 9]))),
            ("weights that are there twice", |graph| graph.initializer.push(constant("w0", DataType::Int8, &[1, 1], vec![1]))),
            ("a node with a graph inside", |graph| {
                graph.node[2].attribute.push(AttributeProto { g: Some(GraphProto::default()), ..AttributeProto::default() });
            }),
            ("a scale that is written twice", |graph| graph.node[3].output.push("again".to_owned())),
            ("sums that become another type", |graph| graph.node[2].attribute[0].i = DataType::Double as i64),
        ];
        for (what, change) in changes {
            let mut graph = layer(1);
            change(&mut graph);
            let before = graph.clone();
            fuse(&mut graph);
            assert_eq!(graph.node, before.node, "{what}");
            assert!(graph.initializer.iter().all(|constant| !constant.name.ends_with(BY_OUTPUTS)), "{what}");
        }
    }
}
