//! Averages of two networks' weights.

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::tensor::Tensor;

/// `share * before + (1 - share) * after`, parameter by parameter; both networks are of one configuration.
///
/// Step after step it is the exponential average of a training; once, with what a fine-tuning began with, it keeps what is added and loses
/// little of what was there (WiSE-FT, Wortsman et al. 2022, equation 1).
pub fn average<M: Module>(before: M, after: &M, share: f64) -> M {
    let mut weights = Weights(Vec::new());
    after.visit(&mut weights);
    weights.0.reverse();
    before.map(&mut Blend { weights: weights.0, share })
}

struct Weights(Vec<Tensor<1>>);

impl ModuleVisitor for Weights {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        self.0.push(param.val().inner().flatten(0, D - 1));
    }
}

struct Blend {
    /// In the order of the visit, last first.
    weights: Vec<Tensor<1>>,
    share: f64,
}

impl ModuleMapper for Blend {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let after = self.weights.pop().expect("both networks have the same parameters in the same order");
        let share = self.share;
        param.map(|before| {
            let shape = before.dims();
            let after = after.reshape(shape);
            Tensor::from_inner(before.inner().mul_scalar(share) + after.mul_scalar(1.0 - share))
        })
    }
}

#[cfg(test)]
mod tests {
    use burn::nn::{Linear, LinearConfig};
    use burn::tensor::Device;

    use super::*;
    use crate::train::checkpoint::{self, Precision};

    #[test]
    fn every_parameter_is_averaged_in_either_precision() {
        let device = Device::flex().autodiff();
        let fresh = || LinearConfig::new(4, 6).init(&device);
        let (before, after): (Linear, Linear) = (fresh(), fresh());
        for (precision, tolerance) in [(Precision::F32, 1e-6), (Precision::F16, 1e-3)] {
            let dir = tempfile::tempdir().expect("a temporary folder");
            checkpoint::save(dir.path(), &"net", &before, precision).expect("saved");
            let read: Linear = checkpoint::load_weights(dir.path(), fresh()).expect("loaded");
            let mixed = average(read, &after, 0.25);
            let error = |mixed: Tensor<1>, before: Tensor<1>, after: Tensor<1>| {
                (mixed - (before * 0.25 + after * 0.75)).abs().max().into_scalar::<f32>()
            };
            let weight = |linear: &Linear| linear.weight.val().flatten(0, 1);
            let bias = |linear: &Linear| linear.bias.as_ref().expect("it has one").val();
            let errors = [error(weight(&mixed), weight(&before), weight(&after)), error(bias(&mixed), bias(&before), bias(&after))];
            assert!(errors.iter().all(|error| *error < tolerance), "{precision:?}: {errors:?}");
        }
    }
}
