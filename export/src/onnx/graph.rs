//! The graph under construction: named values with shapes, initialisers, nodes, and the file that comes out.
//!
//! Everything is checked while the graph is drawn: a shape that does not fit panics in the line that is wrong,
//! which is a mistake in a graph writer and never one in a checkpoint (`weights` has refused those before).

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};

use half::f16;
use tract_onnx::pb::tensor_proto::DataType as OnnxType;
use tract_onnx::pb::{GraphProto, ModelProto, NodeProto, OperatorSetIdProto, StringStringEntryProto, TensorProto};

use super::file::{OnnxFile, Pieces, Spool, in_pieces};
use super::linear::{Form, Importance, PROBE, Precision, matches};
use super::proto::{attribute, value_info};

/// The operator set that the graphs are written for (LayerNormalization joined in 17).
const OPSET: i64 = 17;
/// The domain of ONNX Runtime's own operators; tract knows some of them.
const MICROSOFT: &str = "com.microsoft";
/// The file format version that belongs to opset 17.
const IR_VERSION: i64 = 8;
/// Initialisers from this size on are stored once, however often they are drawn.
const SHARED_BYTES: usize = 1024;

/// Element types that the graphs use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DataType {
    F32,
    F16,
    I64,
    I32,
    I8,
    U8,
    Bool,
}

impl DataType {
    pub(super) fn onnx(self) -> i32 {
        (match self {
            DataType::F32 => OnnxType::Float,
            DataType::F16 => OnnxType::Float16,
            DataType::I64 => OnnxType::Int64,
            DataType::I32 => OnnxType::Int32,
            DataType::I8 => OnnxType::Int8,
            DataType::U8 => OnnxType::Uint8,
            DataType::Bool => OnnxType::Bool,
        }) as i32
    }

    fn bytes(self) -> usize {
        match self {
            DataType::I64 => 8,
            DataType::F32 | DataType::I32 => 4,
            DataType::F16 => 2,
            DataType::I8 | DataType::U8 | DataType::Bool => 1,
        }
    }
}

/// A value of the graph: an input, an initialiser or the output of a node.
#[derive(Clone, Debug)]
pub struct Value {
    pub(super) name: String,
    pub(super) shape: Vec<usize>,
    pub(super) data_type: DataType,
}

impl Value {
    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    pub fn data_type(&self) -> DataType {
        self.data_type
    }

    /// Size of an axis; negative axes count from the last.
    pub(super) fn size(&self, axis: i64) -> usize {
        self.shape[self.axis(axis)]
    }

    pub(super) fn axis(&self, axis: i64) -> usize {
        let rank = self.shape.len() as i64;
        assert!((-rank..rank).contains(&axis), "{}: axis {axis} of rank {rank}", self.name);
        (if axis < 0 { axis + rank } else { axis }) as usize
    }
}

/// An attribute of a node.
pub(super) enum Attribute<'a> {
    Int(i64),
    Float(f32),
    Ints(&'a [i64]),
}

/// One ONNX graph under construction.
pub struct Graph {
    /// All but the initialisers.
    proto: GraphProto,
    initialisers: Spool,
    inputs: Vec<Value>,
    outputs: Vec<Value>,
    names: BTreeSet<String>,
    scopes: Vec<String>,
    metadata: Vec<(String, String)>,
    layers: Vec<Layer>,
    /// Patterns of layers to keep in single precision.
    exclude: Vec<String>,
    /// All layers that have a precision.
    drawn: BTreeSet<String>,
    importance: Option<Importance>,
    probing: bool,
    /// Large initialisers and their places in the file, by how they start: a layer that is drawn for several steps is stored once.
    large: BTreeMap<u64, Vec<(Value, u64)>>,
    /// Is there an operator of the domain com.microsoft?
    microsoft: bool,
}

/// A quantised layer and what its weights lost.
#[derive(Clone, Debug, PartialEq)]
pub struct Layer {
    /// The scopes it was drawn in, joined by dots.
    pub name: String,
    /// Relative L2 of the stored weights against single precision.
    pub error: f64,
}

impl Graph {
    /// An empty graph; `doc` is what a viewer shows about it.
    pub fn new(name: &str, doc: &str) -> Self {
        let proto = GraphProto { name: name.into(), doc_string: doc.into(), ..GraphProto::default() };
        Self {
            proto,
            initialisers: Spool::new(),
            inputs: Vec::new(),
            outputs: Vec::new(),
            names: BTreeSet::new(),
            scopes: Vec::new(),
            metadata: Vec::new(),
            layers: Vec::new(),
            exclude: Vec::new(),
            drawn: BTreeSet::new(),
            importance: None,
            probing: false,
            large: BTreeMap::new(),
            microsoft: false,
        }
    }

    /// A key and value that the file carries beside the graph.
    pub fn metadata(&mut self, key: &str, value: impl ToString) {
        self.metadata.push((key.into(), value.to_string()));
    }

    /// Draws a part of the network under a name prefix, so that node names read like field paths.
    pub fn scope<R>(&mut self, name: &str, draw: impl FnOnce(&mut Self) -> R) -> R {
        self.scopes.push(name.into());
        let result = draw(self);
        self.scopes.pop();
        result
    }

    /// `name` under the scopes in force, with a number where it is taken.
    fn unique(&mut self, name: &str) -> String {
        let base = self.scopes.iter().map(String::as_str).chain([name]).collect::<Vec<_>>().join(".");
        let mut candidate = base.clone();
        let mut number = 1;
        while !self.names.insert(candidate.clone()) {
            number += 1;
            candidate = format!("{base}_{number}");
        }
        candidate
    }

    /// A graph input.
    pub fn input(&mut self, name: &str, data_type: DataType, shape: &[usize]) -> Value {
        assert!(self.names.insert(name.into()), "two values are called {name}");
        let value = Value { name: name.into(), shape: shape.into(), data_type };
        self.proto.input.push(value_info(&value));
        self.inputs.push(value.clone());
        value
    }

    /// Makes `value` a graph output called `name`.
    pub fn output(&mut self, name: &str, value: &Value) {
        assert!(self.names.insert(name.into()), "two values are called {name}");
        let output = Value { name: name.into(), ..value.clone() };
        self.proto.node.push(NodeProto {
            name: format!("{name}/output"),
            op_type: "Identity".into(),
            input: vec![value.name.clone()],
            output: vec![name.into()],
            ..NodeProto::default()
        });
        self.proto.output.push(value_info(&output));
        self.outputs.push(output);
    }

    /// Takes over what a form asks for besides its precision.
    pub fn form(&mut self, form: &Form) {
        self.exclude = form.exclude.to_vec();
        self.importance = form.importance.cloned();
        self.probing = form.probe;
    }

    /// Lets the squares of the inputs `x` of the layer in force come out, where that was asked for.
    pub(super) fn probe(&mut self, x: &Value) {
        let name = format!("{PROBE}{}", self.scopes.join("."));
        if self.probing && !self.names.contains(&name) {
            let squares = self.mul(x, x);
            self.output(&name, &squares);
        }
    }

    /// How much each of the inputs of the layer in force matters, if that is known.
    pub(super) fn importance(&self, inputs: usize) -> Option<Vec<f32>> {
        let known = self.importance.as_ref()?.get(&self.scopes.join("."))?;
        (known.len() == inputs).then(|| known.clone())
    }

    /// All layers that have a precision, whatever it is.
    pub fn drawn(&self) -> &BTreeSet<String> {
        &self.drawn
    }

    /// The precision of the layer in force (of the tensor `name` in it, if that is not empty).
    pub(super) fn precision_of(&mut self, name: &str, precision: Precision) -> Precision {
        let scopes = self.scopes.iter().map(String::as_str);
        let name = scopes.chain([name]).filter(|part| !part.is_empty()).collect::<Vec<_>>().join(".");
        let excluded = |pattern: &String| matches(pattern, &name);
        let precision = if self.exclude.iter().any(excluded) { Precision::Fp32 } else { precision };
        self.drawn.insert(name);
        precision
    }

    /// Notes what the weights of the layer in force lost: of several matrices in it, the one that lost most.
    pub(super) fn record_layer(&mut self, error: f64) {
        let name = self.scopes.join(".");
        match self.layers.iter_mut().find(|layer| layer.name == name) {
            Some(layer) => layer.error = layer.error.max(error),
            None => self.layers.push(Layer { name, error }),
        }
    }

    /// The quantised layers so far, as they were drawn.
    pub fn layers(&self) -> &[Layer] {
        &self.layers
    }

    /// The graph's inputs, in order.
    pub fn inputs(&self) -> &[Value] {
        &self.inputs
    }

    /// The graph's outputs, in order.
    pub fn outputs(&self) -> &[Value] {
        &self.outputs
    }

    /// An initialiser, whose elements come in pieces of their bytes: no second copy of a large table is made.
    fn constant(&mut self, name: &str, shape: &[usize], data_type: DataType, count: usize, pieces: Pieces) -> Value {
        assert_eq!(count, shape.iter().product::<usize>(), "{name}: {shape:?} does not hold {count} elements");
        let bytes = count * data_type.bytes();
        let start = (bytes >= SHARED_BYTES).then(|| fingerprint(pieces));
        let alike = start.and_then(|start| self.large.get(&start)).into_iter().flatten();
        let mut alike = alike.filter(|(like, _)| (like.data_type, like.shape.as_slice()) == (data_type, shape));
        if let Some((same, _)) = alike.find(|(_, place)| self.initialisers.holds(*place, pieces)) {
            return same.clone();
        }
        let name = self.unique(name);
        let dims = shape.iter().map(|&n| n as i64).collect();
        let tensor = TensorProto { name: name.clone(), dims, data_type: data_type.onnx(), ..TensorProto::default() };
        let place = self.initialisers.add(&tensor, bytes, pieces);
        let value = Value { name, shape: shape.into(), data_type };
        if let Some(start) = start {
            self.large.entry(start).or_default().push((value.clone(), place));
        }
        value
    }

    pub fn constant_f32(&mut self, name: &str, shape: &[usize], data: &[f32]) -> Value {
        self.constant(name, shape, DataType::F32, data.len(), &in_pieces(data, f32::to_le_bytes))
    }

    /// Rounds to half precision; pair with [`Graph::cast`] to compute in single precision.
    pub fn constant_f16(&mut self, name: &str, shape: &[usize], data: &[f32]) -> Value {
        self.constant(name, shape, DataType::F16, data.len(), &in_pieces(data, |x| f16::from_f32(x).to_le_bytes()))
    }

    pub fn constant_i64(&mut self, name: &str, shape: &[usize], data: &[i64]) -> Value {
        self.constant(name, shape, DataType::I64, data.len(), &in_pieces(data, i64::to_le_bytes))
    }

    pub fn constant_i8(&mut self, name: &str, shape: &[usize], data: &[i8]) -> Value {
        self.constant(name, shape, DataType::I8, data.len(), &in_pieces(data, i8::to_le_bytes))
    }

    pub fn constant_u8(&mut self, name: &str, shape: &[usize], data: &[u8]) -> Value {
        self.constant(name, shape, DataType::U8, data.len(), &|sink| {
            sink(data);
        })
    }

    pub fn scalar(&mut self, value: f32) -> Value {
        self.constant_f32("constant", &[], &[value])
    }

    /// Appends a node with several outputs of the given types and shapes.
    pub(super) fn node_many(
        &mut self,
        op: &str,
        name: &str,
        inputs: &[&Value],
        attributes: &[(&str, Attribute)],
        outputs: &[(DataType, Vec<usize>)],
    ) -> Vec<Value> {
        let name = self.unique(name);
        let values: Vec<Value> = outputs
            .iter()
            .enumerate()
            .map(|(i, (data_type, shape))| Value {
                name: if i == 0 { format!("{name}/out") } else { format!("{name}/out{i}") },
                shape: shape.clone(),
                data_type: *data_type,
            })
            .collect();
        self.proto.node.push(NodeProto {
            name,
            op_type: op.into(),
            input: inputs.iter().map(|v| v.name.clone()).collect(),
            output: values.iter().map(|v| v.name.clone()).collect(),
            attribute: attributes.iter().map(|(key, value)| attribute(key, value)).collect(),
            ..NodeProto::default()
        });
        values
    }

    /// Appends a node with one output.
    pub(super) fn node(
        &mut self,
        op: &str,
        name: &str,
        inputs: &[&Value],
        attributes: &[(&str, Attribute)],
        data_type: DataType,
        shape: Vec<usize>,
    ) -> Value {
        self.node_many(op, name, inputs, attributes, &[(data_type, shape)])
            .pop()
            .expect("node_many returns as many values as it was given shapes")
    }

    /// The same for an operator of ONNX Runtime's own domain.
    pub(super) fn microsoft_node(
        &mut self,
        op: &str,
        name: &str,
        inputs: &[&Value],
        attributes: &[(&str, Attribute)],
        data_type: DataType,
        shape: Vec<usize>,
    ) -> Value {
        let value = self.node(op, name, inputs, attributes, data_type, shape);
        self.microsoft = true;
        self.proto.node.last_mut().expect("the node was appended in this function").domain = MICROSOFT.into();
        value
    }

    /// The whole file.
    ///
    /// # Errors
    /// When the disk for temporary files is full, at whatever tensor that was.
    pub fn encode(self) -> std::io::Result<OnnxFile> {
        let mut opset_import = vec![OperatorSetIdProto { domain: String::new(), version: OPSET }];
        if self.microsoft {
            opset_import.push(OperatorSetIdProto { domain: MICROSOFT.into(), version: 1 });
        }
        let GraphProto { node, name, doc_string, input, output, .. } = self.proto;
        // In two halves: fields stand in the order of their numbers, with the initialisers in between.
        let start = ModelProto {
            ir_version: IR_VERSION,
            producer_name: "sa-export".into(),
            producer_version: env!("CARGO_PKG_VERSION").into(),
            model_version: 1,
            doc_string: doc_string.clone(),
            ..ModelProto::default()
        };
        let end = ModelProto {
            opset_import,
            metadata_props: self.metadata.into_iter().map(|(key, value)| StringStringEntryProto { key, value }).collect(),
            ..ModelProto::default()
        };
        let graph_start = GraphProto { node, name, ..GraphProto::default() };
        let graph_end = GraphProto { doc_string, input, output, ..GraphProto::default() };
        self.initialisers.finish((start, graph_start), (end, graph_end))
    }
}

/// A hash of the first of the pieces.
fn fingerprint(pieces: Pieces) -> u64 {
    let mut hasher = DefaultHasher::new();
    pieces(&mut |piece| {
        piece.hash(&mut hasher);
        false
    });
    hasher.finish()
}
