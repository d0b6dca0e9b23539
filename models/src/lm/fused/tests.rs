//! The fused network against Burn's own operations.

use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::{Device, Gradients, Tensor};

use super::super::config::Config;
use super::super::network::Network;
use super::super::sequence::{Batch, Item, Sequence, Task};
use super::{Parameters, gradients};

/// Three sequences with every kind of row.
fn batch(config: &Config) -> Vec<Sequence> {
    let token = |id| Item::Token { id, target: Some(id) };
    let fed = |id| Item::Token { id, target: None };
    let group = |index, spoken| Item::Group { index, spoken };
    let units = |n: u16| (0..n * config.group as u16).map(|i| (5 * i + n) % (config.units as u16 + 1)).collect();
    vec![
        Sequence {
            task: Task::Question,
            items: vec![
                fed(1),
                group(0, false),
                group(1, false),
                fed(2),
                token(11),
                token(3),
                token(6),
                token(12),
                group(2, true),
                group(3, true),
                token(9),
            ],
            groups: units(4),
        },
        Sequence {
            task: Task::Text,
            items: vec![fed(2), fed(13), fed(3), Item::Token { id: 7, target: Some(6) }, token(14), token(9)],
            groups: vec![],
        },
        Sequence { task: Task::Say, items: vec![fed(8), fed(11), fed(6), token(11), group(0, true), token(9)], groups: units(1) },
    ]
}

#[test]
fn losses_and_gradients_are_burns_own() {
    let device = Device::flex().autodiff();
    device.seed(11);
    let config = Config::tiny();
    let network = Network::new(&config, &device);
    let sequences = batch(&config);
    let loss = network.loss(&config, &Batch::new(&sequences, config.group), 0.7, &device);
    let expected_loss = loss.clone().into_scalar::<f32>();
    let burn = loss.backward();

    let parameters = Parameters::of(&network, &config);
    for (shards, threads) in
        [(vec![Batch::new(&sequences, config.group)], 1), (sequences.chunks(1).map(|s| Batch::new(s, config.group)).collect(), 2)]
    {
        let mut ours = gradients(&config, &parameters, &shards, 0.7, threads);
        let sum = |f: fn(&super::Score) -> f64| ours.scores.iter().map(f).sum::<f64>();
        let loss = sum(|s| s.text_loss) / sum(|s| s.text as f64) + 0.7 * sum(|s| s.unit_loss) / sum(|s| s.units as f64);
        assert!((loss - f64::from(expected_loss)).abs() < 1e-5, "{loss} {expected_loss}");

        struct Compare<'a> {
            burn: &'a Gradients,
            ours: std::vec::IntoIter<&'a mut Vec<f32>>,
            seen: usize,
        }
        impl ModuleVisitor for Compare<'_> {
            fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
                let ours = self.ours.next().expect("as many tensors");
                let burn =
                    param.val().grad(self.burn).expect("every parameter has a gradient").into_data().try_into_vec::<f32>().expect("floats");
                assert_eq!(burn.len(), ours.len());
                let largest = burn.iter().fold(0.0f32, |a, b| a.max(b.abs()));
                let error = burn.iter().zip(ours.iter()).fold(0.0f32, |e, (a, b)| e.max((a - b).abs()));
                assert!(largest > 0.0 && error <= 1e-4 * largest + 1e-7, "tensor {}: error {error} of {largest}", self.seen);
                self.seen += 1;
            }
        }
        let mut compare = Compare { burn: &burn, ours: ours.parameters.fields().into_iter(), seen: 0 };
        network.visit(&mut compare);
        assert_eq!(compare.seen, 6 + 9 * 2 + 9 + 2);
    }
}

/// `cargo test -p sa-models fused_speed -- --ignored --nocapture`: sequences a second of the nano network on one thread.
#[test]
#[ignore = "a measurement, not a check"]
fn fused_speed() {
    let device = Device::flex();
    let config = Config::nano(1500, 500);
    let parameters = Parameters::of(&Network::new(&config, &device), &config);
    let token = |id| Item::Token { id, target: Some(id) };
    // A typical question: 10 groups heard, 24 text tokens, 14 groups spoken.
    let items = (0..48).map(|i| match i {
        0..10 => Item::Group { index: i, spoken: false },
        24.. if i % 2 == 0 => Item::Group { index: (i - 4) / 2, spoken: true },
        i => token(10 + i as u16),
    });
    let sequence = Sequence {
        task: Task::Question,
        items: std::iter::once(Item::Token { id: 1, target: None }).chain(items).collect(),
        groups: (0..4 * 22).map(|u| u * 5).collect(),
    };
    for shard in [2, 4, 8, 16, 32] {
        let shards = vec![Batch::new(&vec![sequence.clone(); shard], config.group); 64 / shard];
        gradients(&config, &parameters, &shards[..1], 1.0, 1);
        let start = std::time::Instant::now();
        gradients(&config, &parameters, &shards, 1.0, 1);
        let seconds = start.elapsed().as_secs_f64();
        eprintln!("shards of {shard}: {:.1} sequences/s, {:.0} positions/s", 64.0 / seconds, 64.0 * 49.0 / seconds);
    }
}
