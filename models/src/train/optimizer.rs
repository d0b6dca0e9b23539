//! AdamW with a global gradient norm and a cosine schedule with warm-up.

use burn::module::{Module, ModuleVisitor, Param};
use burn::optim::{AdamWConfig, GradientsParams, ModuleOptimizer};
use burn::tensor::{Gradients, Tensor};
use serde::{Deserialize, Serialize};

/// Every number of the optimiser.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub struct OptimizerConfig {
    pub learning_rate: f64,
    pub beta_1: f32,
    pub beta_2: f32,
    pub weight_decay: f32,
    /// Largest norm of all gradients together (Burn's own clipping works tensor by tensor).
    pub clip: f32,
    pub warmup: u64,
    /// Learning rate at the last step, as a share of `learning_rate`.
    pub floor: f64,
}

impl Default for OptimizerConfig {
    fn default() -> Self {
        Self { learning_rate: 2e-3, beta_1: 0.9, beta_2: 0.98, weight_decay: 0.01, clip: 1.0, warmup: 50, floor: 0.02 }
    }
}

impl OptimizerConfig {
    /// Learning rate of `step` (from 0) of `total`: linear warm-up, then half a cosine down to the floor.
    pub fn rate(&self, step: u64, total: u64) -> f64 {
        if step < self.warmup {
            return self.learning_rate * (step + 1) as f64 / self.warmup as f64;
        }
        let progress = (step - self.warmup) as f64 / total.saturating_sub(self.warmup).max(1) as f64;
        let cosine = 0.5 * (1.0 + (std::f64::consts::PI * progress.min(1.0)).cos());
        self.learning_rate * (self.floor + (1.0 - self.floor) * cosine)
    }
}

/// AdamW over a whole module.
pub struct Optimizer {
    pub config: OptimizerConfig,
    pub(super) inner: ModuleOptimizer,
}

impl Optimizer {
    pub fn new(config: OptimizerConfig) -> Self {
        let inner = AdamWConfig::new()
            .with_beta_1(config.beta_1)
            .with_beta_2(config.beta_2)
            .with_epsilon(1e-8)
            .with_weight_decay(config.weight_decay)
            .init();
        Self { config, inner }
    }

    /// One update; returns the module and the norm of the gradients before clipping.
    /// An update with a norm that is not finite is left out.
    pub fn step<M: Module>(&mut self, module: M, gradients: Gradients, step: u64, total: u64) -> (M, f32) {
        let gradients = GradientsParams::from_grads(gradients, &module);
        self.apply(module, gradients, step, total)
    }

    /// [`Optimizer::step`] for gradients that were not made by a backward pass of Burn.
    pub fn apply<M: Module>(&mut self, module: M, mut gradients: GradientsParams, step: u64, total: u64) -> (M, f32) {
        let mut squares = Squares { gradients: &gradients, sums: Vec::new() };
        module.visit(&mut squares);
        let norm = if squares.sums.is_empty() { 0.0 } else { Tensor::cat(squares.sums, 0).sum().into_scalar::<f32>().sqrt() };
        if !norm.is_finite() {
            return (module, norm);
        }
        if norm > self.config.clip {
            module.visit(&mut Scale { gradients: &mut gradients, factor: self.config.clip / norm });
        }
        let module = self.inner.step(self.config.rate(step, total), module, gradients);
        (module, norm)
    }
}

struct Squares<'a> {
    gradients: &'a GradientsParams,
    sums: Vec<Tensor<1>>,
}

impl ModuleVisitor for Squares<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if let Some(gradient) = self.gradients.get::<D>(param.id) {
            self.sums.push(gradient.square().sum());
        }
    }
}

struct Scale<'a> {
    gradients: &'a mut GradientsParams,
    factor: f32,
}

impl ModuleVisitor for Scale<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if let Some(gradient) = self.gradients.remove::<D>(param.id) {
            self.gradients.register(param.id, gradient.mul_scalar(self.factor));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_warms_up_peaks_and_falls_to_the_floor() {
        let config = OptimizerConfig { warmup: 10, ..OptimizerConfig::default() };
        assert!(config.rate(0, 100) < config.rate(9, 100));
        assert!((config.rate(10, 100) - config.learning_rate).abs() < 1e-12);
        assert!((config.rate(100, 100) - config.learning_rate * config.floor).abs() < 1e-12);
    }

    #[test]
    fn a_large_gradient_is_clipped_and_a_broken_one_left_out() {
        use burn::nn::LinearConfig;
        use burn::tensor::{Device, Distribution};
        let device = Device::flex().autodiff();
        let model = LinearConfig::new(4, 4).init(&device);
        let before = model.weight.val().into_data();
        let mut optimizer = Optimizer::new(OptimizerConfig::default());
        let input = Tensor::<2>::random([2, 4], Distribution::Default, &device);
        let loss = model.forward(input.clone()).mul_scalar(f32::INFINITY).sum();
        let (model, norm) = optimizer.step(model, loss.backward(), 0, 10);
        assert!(!norm.is_finite());
        assert_eq!(before, model.weight.val().into_data());
        let loss = model.forward(input).mul_scalar(1e3).sum();
        let (model, norm) = optimizer.step(model, loss.backward(), 0, 10);
        assert!(norm > 1.0);
        assert_ne!(before, model.weight.val().into_data());
    }
}
