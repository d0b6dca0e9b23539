//! Small parts of an ONNX file in its encoding's types.

use tract_onnx::pb::{
    AttributeProto, TensorShapeProto, TypeProto, ValueInfoProto, attribute_proto::AttributeType, tensor_shape_proto, type_proto,
};

use super::graph::{Attribute, Value};

/// The declaration of an input or output.
pub(super) fn value_info(value: &Value) -> ValueInfoProto {
    let dim = value
        .shape
        .iter()
        .map(|&n| tensor_shape_proto::Dimension {
            value: Some(tensor_shape_proto::dimension::Value::DimValue(n as i64)),
            ..Default::default()
        })
        .collect();
    let tensor = type_proto::Tensor { elem_type: value.data_type.onnx(), shape: Some(TensorShapeProto { dim }) };
    ValueInfoProto {
        name: value.name.clone(),
        r#type: Some(TypeProto { value: Some(type_proto::Value::TensorType(tensor)), ..TypeProto::default() }),
        ..ValueInfoProto::default()
    }
}

/// An attribute of a node.
pub(super) fn attribute(key: &str, value: &Attribute) -> AttributeProto {
    let base = AttributeProto { name: key.into(), ..AttributeProto::default() };
    match value {
        Attribute::Int(i) => AttributeProto { r#type: AttributeType::Int as i32, i: *i, ..base },
        Attribute::Float(f) => AttributeProto { r#type: AttributeType::Float as i32, f: *f, ..base },
        Attribute::Ints(ints) => AttributeProto { r#type: AttributeType::Ints as i32, ints: ints.to_vec(), ..base },
    }
}
