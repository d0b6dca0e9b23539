//! What the builder writes loads into tract and computes what its name says.

use prost::Message;
use tract_onnx::pb::ModelProto;
use tract_onnx::prelude::*;

use super::{BLOCK, DataType, Form, Graph, Precision, SPLIT_ELEMENTS, Value, quantise_blocks, quantise_per_channel, widened_blocks};
use crate::samples::noise;

fn encoded(graph: Graph) -> Vec<u8> {
    let file = graph.encode().expect("written");
    let bytes = std::fs::read(file.path()).expect("read");
    assert_eq!(bytes.len(), file.bytes());
    bytes
}

/// Runs a graph of f32 inputs and outputs.
fn run(graph: Graph, inputs: &[(&[usize], &[f32])]) -> Vec<Vec<f32>> {
    let bytes = encoded(graph);
    let plan = onnx().model_for_read(&mut &bytes[..]).and_then(|m| m.into_optimized()).and_then(|m| m.into_runnable());
    let inputs = inputs.iter().map(|(shape, data)| Tensor::from_shape(shape, data).expect("fits").into()).collect();
    let outputs = plan.expect("tract loads it").run(inputs).expect("runs");
    outputs.iter().map(|o| o.to_plain_array_view::<f32>().expect("f32").iter().copied().collect()).collect()
}

/// One input, one operation, one output.
fn apply(shape: &[usize], x: &[f32], op: impl FnOnce(&mut Graph, &Value) -> Value) -> Vec<f32> {
    let mut graph = Graph::new("test", "");
    let input = graph.input("x", DataType::F32, shape);
    let output = op(&mut graph, &input);
    graph.output("y", &output);
    run(graph, &[(shape, x)]).remove(0)
}

fn near(actual: &[f32], expected: impl IntoIterator<Item = f32>) {
    let expected: Vec<f32> = expected.into_iter().collect();
    assert_eq!(actual.len(), expected.len());
    for (i, (a, b)) in actual.iter().zip(&expected).enumerate() {
        assert!((a - b).abs() < 1e-5, "element {i}: {a} for {b}");
    }
}

/// Relative L2.
fn error(actual: &[f32], expected: &[f32]) -> f32 {
    let difference: f32 = actual.iter().zip(expected).map(|(a, b)| (a - b).powi(2)).sum();
    (difference / expected.iter().map(|b| b.powi(2)).sum::<f32>()).sqrt()
}

#[test]
fn activations_and_norms() {
    let x = noise(12, 1);
    near(&apply(&[3, 4], &x, |g, x| g.silu(x)), x.iter().map(|x| x / (1.0 + (-x).exp())));
    near(&apply(&[3, 4], &x, |g, x| g.relu(x)), x.iter().map(|x| x.max(0.0)));
    // Values of the normal distribution's Φ.
    near(&apply(&[3], &[-1.0, 0.0, 2.0], |g, x| g.gelu(x)), [-0.158_655_25, 0.0, 1.954_499_7]);
    let (weight, bias) = (noise(4, 2), noise(4, 3));
    let rows = |norm: &dyn Fn(&[f32]) -> Vec<f32>| x.chunks_exact(4).flat_map(norm).collect::<Vec<_>>();
    let layer = rows(&|row| {
        let mean = row.iter().sum::<f32>() / 4.0;
        let variance = row.iter().map(|x| (x - mean).powi(2)).sum::<f32>() / 4.0;
        (0..4).map(|i| (row[i] - mean) / (variance + 1e-5).sqrt() * weight[i] + bias[i]).collect()
    });
    near(&apply(&[3, 4], &x, |g, x| g.layer_norm(x, &weight, &bias, 1e-5)), layer);
    let rms = rows(&|row| {
        let mean = row.iter().map(|x| x * x).sum::<f32>() / 4.0;
        (0..4).map(|i| row[i] / (mean + 1e-6).sqrt() * weight[i]).collect()
    });
    near(&apply(&[3, 4], &x, |g, x| g.rms_norm(x, &weight, 1e-6)), rms);
    let soft = rows(&|row| {
        let sum: f32 = row.iter().map(|x| x.exp()).sum();
        row.iter().map(|x| x.exp() / sum).collect()
    });
    near(&apply(&[3, 4], &x, |g, x| g.softmax(x)), soft);
}

#[test]
fn shapes_slices_and_products() {
    let x = noise(12, 4);
    near(&apply(&[3, 4], &x, |g, x| g.transpose(x, &[1, 0])), (0..12).map(|i| x[i % 3 * 4 + i / 3]));
    near(&apply(&[3, 4], &x, |g, x| g.slice(x, -1, 1, 3)), [1, 2, 5, 6, 9, 10].map(|i| x[i]));
    let twice = apply(&[3, 4], &x, |g, x| g.concat(&[x, x], 0));
    near(&twice, x.iter().chain(&x).copied());
    let squared = apply(&[3, 4], &x, |g, x| {
        let columns = g.transpose(x, &[1, 0]);
        g.matmul(x, &columns)
    });
    near(&squared, (0..9).map(|i| (0..4).map(|k| x[i / 3 * 4 + k] * x[i % 3 * 4 + k]).sum()));
    near(&apply(&[3, 4], &x, |g, x| g.reduce_mean(x)), x.chunks_exact(4).map(|row| row.iter().sum::<f32>() / 4.0));
    let clipped = apply(&[12], &x, |g, x| g.clip(x, -0.1, 0.1));
    near(&clipped, x.iter().map(|x| x.clamp(-0.1, 0.1)));
}

#[test]
fn strided_and_depthwise_convolutions() {
    let (x, w) = (noise(2 * 9, 5), noise(3 * 2 * 4, 6));
    let strided = apply(&[1, 2, 9], &x, |g, x| {
        let weight = g.kernel(&w, &[3, 2, 4], Precision::Fp32);
        g.conv(x, &weight, None, 2, 1)
    });
    let at = |o: usize, t: usize| (0..2).map(|c| (0..4).map(|k| x[c * 9 + 2 * t + k] * w[(o * 2 + c) * 4 + k]).sum::<f32>()).sum();
    near(&strided, (0..9).map(|i| at(i / 3, i % 3)));
    let w = noise(2 * 3, 7);
    let depthwise = apply(&[1, 2, 9], &x, |g, x| {
        let weight = g.kernel(&w, &[2, 1, 3], Precision::Fp32);
        g.conv(x, &weight, None, 1, 2)
    });
    near(&depthwise, (0..14).map(|i| (0..3).map(|k| x[i / 7 * 9 + i % 7 + k] * w[i / 7 * 3 + k]).sum()));
}

/// As a convolution computes it: taps of one stride, of less, of more, and of many; lengths that end with a stride or within one.
#[test]
fn convolutions_over_rows() {
    for (kernel, stride) in [(2, 2), (3, 2), (10, 5), (1, 3), (7, 2)] {
        for t in [20, 21] {
            let (x, w, b) = (noise(t * 3, 5), noise(4 * 3 * kernel, 6), noise(4, 7));
            let found = apply(&[t, 3], &x, |g, x| g.conv_rows(x, &w, Some(&b), [4, kernel], stride, Precision::Fp32));
            let frames = (t - kernel) / stride + 1;
            let tap = |o: usize, frame: usize, k: usize| -> f32 {
                (0..3).map(|c| x[(frame * stride + k) * 3 + c] * w[(o * 3 + c) * kernel + k]).sum()
            };
            near(&found, (0..frames * 4).map(|i| b[i % 4] + (0..kernel).map(|k| tap(i % 4, i / 4, k)).sum::<f32>()));
        }
    }
}

#[test]
fn a_layer_is_near_in_every_precision() {
    let (m, k, n) = (5, 192, 100);
    let (x, w, b) = (noise(m * k, 8), noise(n * k, 9), noise(n, 10));
    let expected: Vec<f32> = (0..m * n).map(|i| b[i % n] + (0..k).map(|j| x[i / n * k + j] * w[i % n * k + j]).sum::<f32>()).collect();
    for (precision, budget) in
        [(Precision::Fp32, 1e-6), (Precision::Fp16, 5e-4), (Precision::Int8Weights, 5e-3), (Precision::Int8, 1e-2), (Precision::Int4, 0.1)]
    {
        let y = apply(&[m, k], &x, |g, x| g.linear(x, &w, Some(&b), precision));
        assert!(error(&y, &expected) < budget, "{precision}: {}", error(&y, &expected));
    }
}

/// Outputs of the parts that 8-bit weights over `k` inputs are split into.
fn part_sizes(weight: &[f32], k: usize) -> Vec<i64> {
    let mut graph = Graph::new("test", "");
    let x = graph.input("x", DataType::F32, &[1, k]);
    let y = graph.linear(&x, weight, None, Precision::Int8);
    graph.output("y", &y);
    let model = ModelProto::decode(&encoded(graph)[..]).expect("well formed").graph.expect("a graph");
    model.initializer.iter().filter(|t| t.name.starts_with("weight") && t.dims.len() == 2).map(|t| t.dims[1]).collect()
}

#[test]
fn large_weights_are_split_and_joined_in_order() {
    let (k, n) = (2048, 1100); // 2.1 parts
    let (x, w) = (noise(k, 11), noise(n * k, 12));
    let parts = part_sizes(&w, k);
    assert_eq!(parts, [512, 512, 76]);
    assert!(parts.iter().all(|n| *n as usize * k <= SPLIT_ELEMENTS));
    let y = apply(&[1, k], &x, |g, x| g.linear(x, &w, None, Precision::Int8));
    let expected: Vec<f32> = w.chunks_exact(k).map(|row| row.iter().zip(&x).map(|(w, x)| w * x).sum()).collect();
    assert!(error(&y, &expected) < 1e-2, "{}", error(&y, &expected));
}

/// The down projection of Qwen2.5-7B has more inputs than fit 64 times into a part.
#[test]
fn parts_of_very_wide_layers_stay_below_the_limit() {
    let (k, n) = (18_944, 130);
    let parts = part_sizes(&noise(n * k, 22), k);
    assert_eq!(parts, [55, 55, 20]);
    assert!(parts.iter().all(|n| *n as usize * k <= SPLIT_ELEMENTS));
}

#[test]
fn four_bit_blocks_are_within_a_step_and_are_what_the_engine_computes_with() {
    let (k, n) = (2 * BLOCK, 3);
    let mut weight = noise(n * k, 14);
    weight[..BLOCK].fill(0.0);
    weight[BLOCK] = 30.0; // an outlier harms its own block only
    let blocks = quantise_blocks(&weight, None);
    let (packed, scales) = &blocks;
    assert_eq!((packed.len(), scales.len()), (n * k / 2, n * k / BLOCK));
    let stored: Vec<f32> = widened_blocks(&blocks).collect();
    for (i, (w, q)) in weight.iter().zip(&stored).enumerate() {
        let scale = scales[i / BLOCK];
        // The positive end has one level less, and the largest may be cut off where that serves the others.
        let most = if (-7.5..6.5).contains(&(q / scale)) { 0.5001 } else { 2.7 };
        assert!((w - q).abs() <= most * scale.abs(), "weight {i}: {q} for {w}");
    }
    assert!(scales[2].abs() < 0.5 / 7.0);
    let x = noise(k, 15);
    let y = apply(&[1, k], &x, |g, x| g.linear(x, &weight, None, Precision::Int4));
    let expected: Vec<f32> = stored.chunks_exact(k).map(|row| row.iter().zip(&x).map(|(w, x)| w * x).sum()).collect();
    // The engine keeps scales in half precision.
    assert!(error(&y, &expected) < 2e-3, "{}", error(&y, &expected));
}

/// Whole or split, the runtime's operator takes the place of all the nodes of an 8-bit layer: otherwise it would be right, and slow.
#[test]
fn the_runtime_knows_an_8_bit_layer_when_it_sees_one() {
    for (inputs, outputs, parts) in [(64, 96, 1), (1024, 2048, 2)] {
        let mut graph = Graph::new("test", "");
        let x = graph.input("x", DataType::F32, &[1, 5, inputs]);
        let y = graph.linear(&x, &noise(inputs * outputs, 16), None, Precision::Int8);
        graph.output("y", &y);
        let mut graph = ModelProto::decode(&encoded(graph)[..]).expect("well formed").graph.expect("a graph");
        assert_eq!(graph.node.iter().filter(|node| node.op_type == "MatMulInteger").count(), parts);
        sa_device::engine::tract::fuse(&mut graph);
        assert_eq!(graph.node.iter().map(|node| node.op_type.as_str()).collect::<Vec<_>>(), ["SaInt8Linear", "Identity"]);
        assert_eq!(graph.node[0].input.len(), 1 + 2 * parts);
    }
}

/// What the large inputs are multiplied by is stored more exactly at the cost of the rest.
#[test]
fn four_bits_go_where_they_matter() {
    let (k, n) = (2 * BLOCK, 50);
    let weight = noise(n * k, 21);
    let importance: Vec<f32> = (0..k).map(|i| if i % 8 == 0 { 100.0 } else { 1.0 }).collect();
    let loss = |known: Option<&[f32]>, counts: &dyn Fn(usize) -> f32| -> f32 {
        let blocks = quantise_blocks(&weight, known);
        widened_blocks(&blocks).zip(&weight).enumerate().map(|(i, (q, w))| counts(i % k) * (q - w).powi(2)).sum()
    };
    let counted = |i: usize| importance[i];
    assert!(loss(Some(&importance), &counted) < 0.9 * loss(None, &counted));
    assert!(loss(None, &|_| 1.0) < loss(Some(&importance), &|_| 1.0));
}

#[test]
fn layers_are_kept_in_single_precision_by_name() {
    let mut graph = Graph::new("test", "");
    let exclude = ["blocks.?.up".into(), "*embedding*".into()];
    graph.form(&Form { exclude: &exclude, ..Form::from(Precision::Int8) });
    let x = graph.input("x", DataType::F32, &[1, 64]);
    let weight = noise(64 * 8, 17);
    for name in ["blocks.0", "blocks.1", "blocks.10"] {
        graph.scope(name, |g| g.scope("up", |g| g.linear(&x, &weight, None, Precision::Int8)));
    }
    graph.table("unit_embedding.weight", &weight, 8, Precision::Int8);
    assert_eq!(graph.layers().iter().map(|layer| layer.name.as_str()).collect::<Vec<_>>(), ["blocks.10.up"]);
    let model = ModelProto::decode(&encoded(graph)[..]).expect("well formed").graph.expect("a graph");
    let single = DataType::F32.onnx();
    let kept = model.initializer.iter().filter(|t| t.data_type == single && t.dims.len() == 2).map(|t| t.name.as_str());
    // The two layers have the same weights, which are stored once.
    assert_eq!(kept.collect::<Vec<_>>(), ["blocks.0.up.weight", "unit_embedding.weight"]);
    let products = |op: &str| model.node.iter().filter(|node| node.op_type == op).count();
    assert_eq!((products("MatMul"), products("MatMulInteger")), (2, 1));
}

#[test]
fn large_initialisers_are_stored_once_if_they_are_the_same_to_the_end() {
    let mut graph = Graph::new("test", "");
    let one = noise(1 << 16, 31);
    let mut other = one.clone();
    other[(1 << 16) - 1] += 1.0;
    for data in [&one, &other, &one, &other] {
        graph.constant_f32("table", &[1 << 8, 1 << 8], data);
    }
    graph.constant_f32("row", &[1 << 16], &one);
    let model = ModelProto::decode(&encoded(graph)[..]).expect("well formed").graph.expect("a graph");
    let stored: Vec<_> = model.initializer.iter().map(|tensor| (tensor.dims.len(), &tensor.raw_data[..])).collect();
    let bytes = |data: &[f32]| data.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
    assert!(stored == [(2, &bytes(&one)[..]), (2, &bytes(&other)), (1, &bytes(&one))]);
}

#[test]
fn quantised_layers_say_what_they_lost() {
    let mut graph = Graph::new("test", "");
    let x = graph.input("x", DataType::F32, &[1, 64]);
    let weight = noise(64 * 8, 16);
    for precision in Precision::ALL {
        graph.scope(precision.name(), |g| g.linear(&x, &weight, None, precision));
    }
    let of = |name: &str| graph.layers().iter().find(|layer| layer.name == name).map(|layer| layer.error);
    assert_eq!((of("fp32"), of("fp16")), (None, None));
    let (int8, int4) = (of("int8").expect("noted"), of("int4").expect("noted"));
    assert!((1e-4..1e-2).contains(&int8) && (2e-2..0.2).contains(&int4), "{int8} {int4}");
    assert_eq!(of("int8-weights"), Some(int8));
}

#[test]
fn of_the_matrices_of_a_layer_the_worst_counts() {
    let mut graph = Graph::new("test", "");
    let x = graph.input("x", DataType::F32, &[1, 64]);
    // One level for all weights: nothing is lost of the first matrix.
    let (exact, lossy) = (vec![0.5; 64 * 8], noise(64 * 8, 18));
    graph.scope("layer", |g| {
        g.linear(&x, &exact, None, Precision::Int8);
        g.linear(&x, &lossy, None, Precision::Int8)
    });
    graph.scope("in_parts", |g| g.linear_in_parts(&x, &[exact, lossy].concat(), &[0.0; 16], 2, Precision::Int4));
    let layers: Vec<(&str, bool)> = graph.layers().iter().map(|layer| (layer.name.as_str(), layer.error > 1e-4)).collect();
    assert_eq!(layers, [("layer", true), ("in_parts", true)]);
}

#[test]
fn quantised_weights_are_within_half_a_step() {
    let mut weight = noise(6 * 50, 13);
    weight[..50].fill(0.0); // a row of zeros has a scale all the same
    weight[50] = 30.0; // an outlier harms its own row only
    let (quantised, scales) = quantise_per_channel(&weight, 50);
    assert_eq!(scales.len(), 6);
    for (i, (w, q)) in weight.iter().zip(&quantised).enumerate() {
        let scale = scales[i / 50];
        assert!(scale > 0.0 && (w - f32::from(*q) * scale).abs() <= 0.5001 * scale);
    }
    assert!(scales[2] < 0.5 / 127.0);
}

#[test]
fn names_are_unique_and_read_like_paths() {
    let mut graph = Graph::new("test", "what it is for");
    graph.metadata("stage", "test");
    let x = graph.input("x", DataType::F32, &[2, 2]);
    let y = graph.scope("block.0", |g| g.scope("norm", |g| g.rms_norm(&x, &[1.0, 1.0], 1e-6)));
    let z = graph.scope("block.0", |g| g.scope("norm", |g| g.rms_norm(&y, &[1.0, 1.0], 1e-6)));
    graph.output("z", &z);
    assert_eq!((graph.inputs()[0].name(), graph.outputs()[0].shape()), ("x", &[2, 2][..]));
    let model = ModelProto::decode(&encoded(graph)[..]).expect("well formed");
    assert_eq!((model.producer_name.as_str(), model.metadata_props[0].key.as_str()), ("sa-export", "stage"));
    let graph = model.graph.expect("a graph");
    assert_eq!(graph.doc_string, "what it is for");
    let names: std::collections::BTreeSet<&str> = graph.node.iter().map(|node| node.name.as_str()).collect();
    assert_eq!(names.len(), graph.node.len());
    assert!(names.contains("block.0.norm.rms_norm.mul"));
    assert!(graph.initializer.iter().all(|tensor| !tensor.raw_data.is_empty()));
}

#[test]
#[should_panic(expected = "do not broadcast")]
fn a_shape_that_does_not_fit_stops_the_drawing() {
    let mut graph = Graph::new("test", "");
    let a = graph.input("a", DataType::F32, &[2, 3]);
    let b = graph.input("b", DataType::F32, &[2, 4]);
    graph.add(&a, &b);
}
