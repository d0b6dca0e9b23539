//! Writes small ONNX graphs.

use prost::Message;
use tract_onnx::pb::{self, tensor_proto::DataType, type_proto};

/// A graph in the making. Values are named by strings; every operator returns the name of its output.
#[derive(Default)]
pub struct Graph {
    graph: pb::GraphProto,
    count: usize,
    seed: u64,
}

/// An attribute.
pub enum Attribute {
    Int(i64),
    Ints(Vec<i64>),
}

impl Graph {
    pub fn new(seed: u64) -> Self {
        Self { seed, ..Self::default() }
    }

    pub fn input(&mut self, name: &str, shape: &[usize], integer: bool) -> String {
        self.graph.input.push(info(name, shape, integer));
        name.to_owned()
    }

    /// Gives a value the name of an output.
    pub fn output(&mut self, name: &str, value: &str, shape: &[usize], integer: bool) {
        self.node("Identity", &[value], &[], name);
        self.graph.output.push(info(name, shape, integer));
    }

    pub fn op(&mut self, op: &str, inputs: &[&str], attributes: &[(&str, Attribute)]) -> String {
        self.count += 1;
        let name = format!("{op}.{}", self.count);
        self.node(op, inputs, attributes, &name);
        name
    }

    /// An operator with several outputs.
    pub fn op_many<const N: usize>(&mut self, op: &str, inputs: &[&str]) -> [String; N] {
        self.count += 1;
        let names = std::array::from_fn(|output| format!("{op}.{}.{output}", self.count));
        self.push(op, inputs, &[], &names);
        names
    }

    fn node(&mut self, op: &str, inputs: &[&str], attributes: &[(&str, Attribute)], output: &str) {
        self.push(op, inputs, attributes, &[output.to_owned()]);
    }

    fn push(&mut self, op: &str, inputs: &[&str], attributes: &[(&str, Attribute)], outputs: &[String]) {
        self.graph.node.push(pb::NodeProto {
            input: inputs.iter().map(|i| (*i).to_owned()).collect(),
            output: outputs.to_vec(),
            name: outputs[0].clone(),
            op_type: op.to_owned(),
            attribute: attributes.iter().map(|(name, value)| attribute(name, value)).collect(),
            ..Default::default()
        });
    }

    pub fn f32(&mut self, shape: &[usize], values: &[f32]) -> String {
        assert_eq!(shape.iter().product::<usize>(), values.len());
        self.constant(shape, DataType::Float, values.iter().flat_map(|v| v.to_le_bytes()).collect())
    }

    pub fn i64(&mut self, values: &[i64]) -> String {
        self.constant(&[values.len()], DataType::Int64, values.iter().flat_map(|v| v.to_le_bytes()).collect())
    }

    pub fn i8(&mut self, shape: &[usize], values: &[i8]) -> String {
        self.constant(shape, DataType::Int8, values.iter().map(|v| v.cast_unsigned()).collect())
    }

    /// A weight of random values in -1..1.
    pub fn weight(&mut self, shape: &[usize]) -> String {
        let values: Vec<f32> = (0..shape.iter().product::<usize>()).map(|_| self.random()).collect();
        self.f32(shape, &values)
    }

    pub fn random(&mut self) -> f32 {
        // xorshift: any sequence will do, as long as it is always the same.
        self.seed ^= self.seed << 13;
        self.seed ^= self.seed >> 7;
        self.seed ^= self.seed << 17;
        (self.seed >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    pub fn slice(&mut self, value: &str, axis: i64, start: i64, end: i64) -> String {
        let (start, end, axis) = (self.i64(&[start]), self.i64(&[end]), self.i64(&[axis]));
        self.op("Slice", &[value, &start, &end, &axis], &[])
    }

    pub fn reshape(&mut self, value: &str, shape: &[i64]) -> String {
        let shape = self.i64(shape);
        self.op("Reshape", &[value, &shape], &[])
    }

    pub fn concat(&mut self, values: &[&str], axis: i64) -> String {
        self.op("Concat", values, &[("axis", Attribute::Int(axis))])
    }

    fn constant(&mut self, shape: &[usize], data_type: DataType, raw_data: Vec<u8>) -> String {
        self.count += 1;
        let name = format!("constant.{}", self.count);
        self.graph.initializer.push(pb::TensorProto {
            dims: shape.iter().map(|d| *d as i64).collect(),
            data_type: data_type as i32,
            name: name.clone(),
            raw_data,
            ..Default::default()
        });
        name
    }

    pub fn encode(mut self, name: &str) -> Vec<u8> {
        self.graph.name = name.to_owned();
        let model = pb::ModelProto {
            ir_version: 8,
            opset_import: vec![pb::OperatorSetIdProto { domain: String::new(), version: 17 }],
            graph: Some(self.graph),
            ..Default::default()
        };
        model.encode_to_vec()
    }
}

fn attribute(name: &str, value: &Attribute) -> pb::AttributeProto {
    use pb::attribute_proto::AttributeType;
    let mut proto = pb::AttributeProto { name: name.to_owned(), ..Default::default() };
    match value {
        Attribute::Int(value) => {
            proto.r#type = AttributeType::Int as i32;
            proto.i = *value;
        }
        Attribute::Ints(values) => {
            proto.r#type = AttributeType::Ints as i32;
            proto.ints.clone_from(values);
        }
    }
    proto
}

fn info(name: &str, shape: &[usize], integer: bool) -> pb::ValueInfoProto {
    let dimension = |size: &usize| pb::tensor_shape_proto::Dimension {
        value: Some(pb::tensor_shape_proto::dimension::Value::DimValue(*size as i64)),
        ..Default::default()
    };
    let tensor = type_proto::Tensor {
        elem_type: if integer { DataType::Int64 } else { DataType::Float } as i32,
        shape: Some(pb::TensorShapeProto { dim: shape.iter().map(dimension).collect() }),
    };
    let r#type = pb::TypeProto { value: Some(type_proto::Value::TensorType(tensor)), ..Default::default() };
    pb::ValueInfoProto { name: name.to_owned(), r#type: Some(r#type), ..Default::default() }
}
