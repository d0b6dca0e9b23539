//! The network's weights as plain vectors, in the order in which Burn visits the module's fields.

use burn::module::{Module, ModuleVisitor, Param, ParamId};
use burn::tensor::{Device, Tensor, TensorData};

use super::super::config::Config;
use super::super::network::Network;

/// One block; matrices are [inputs, outputs], row by row.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct BlockParameters {
    pub input_norm: Vec<f32>,
    pub query: Vec<f32>,
    pub key: Vec<f32>,
    pub value: Vec<f32>,
    pub output: Vec<f32>,
    pub mlp_norm: Vec<f32>,
    pub gate: Vec<f32>,
    pub up: Vec<f32>,
    pub down: Vec<f32>,
}

/// The network.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Parameters {
    pub embedding: Vec<f32>, // [V, d]
    pub layers: Vec<BlockParameters>,
    pub norm: Vec<f32>,
    pub unit_embedding: Vec<f32>, // [k + 1, e]
    pub adaptor: Vec<f32>,        // [G e, d]
    pub head_input: Vec<f32>,     // [d, d]
    pub queries: Vec<f32>,        // [G, d]
    pub head_layers: Vec<BlockParameters>,
    pub head_norm: Vec<f32>,
    pub head_output: Vec<f32>, // [d, k + 1]
}

impl BlockParameters {
    fn fields(&mut self) -> [&mut Vec<f32>; 9] {
        [
            &mut self.input_norm,
            &mut self.query,
            &mut self.key,
            &mut self.value,
            &mut self.output,
            &mut self.mlp_norm,
            &mut self.gate,
            &mut self.up,
            &mut self.down,
        ]
    }
}

impl Parameters {
    /// Copies the weights of `network`.
    ///
    /// # Panics
    /// A network with attention biases ([`Config::attention_bias`]): callers choose Burn's own gradients for those.
    pub fn of(network: &Network, config: &Config) -> Self {
        assert!(!config.attention_bias, "attention biases are not computed here");
        struct Read(Vec<Vec<f32>>);
        impl ModuleVisitor for Read {
            fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
                self.0.push(param.val().into_data().try_into_vec().expect("parameters are f32"));
            }
        }
        let mut read = Read(Vec::new());
        network.visit(&mut read);
        let mut parameters = Self {
            layers: vec![BlockParameters::default(); config.num_hidden_layers],
            head_layers: vec![BlockParameters::default(); config.head.num_hidden_layers],
            ..Self::default()
        };
        let mut tensors = read.0.into_iter();
        for field in parameters.fields() {
            *field = tensors.next().expect("as many tensors as fields");
        }
        assert!(tensors.next().is_none(), "as many fields as tensors");
        parameters
    }

    /// All tensors in the order of the module's fields.
    pub fn fields(&mut self) -> Vec<&mut Vec<f32>> {
        let mut fields = vec![&mut self.embedding];
        fields.extend(self.layers.iter_mut().flat_map(BlockParameters::fields));
        fields.extend([&mut self.norm, &mut self.unit_embedding, &mut self.adaptor, &mut self.head_input, &mut self.queries]);
        fields.extend(self.head_layers.iter_mut().flat_map(BlockParameters::fields));
        fields.extend([&mut self.head_norm, &mut self.head_output]);
        fields
    }

    /// Zeros of the same shapes.
    pub fn zeros(&self) -> Self {
        let mut zeros = self.clone();
        zeros.fields().into_iter().for_each(|field| field.fill(0.0));
        zeros
    }

    /// Adds `other`, tensor by tensor.
    pub fn add(&mut self, other: &mut Self) {
        for (sum, more) in self.fields().into_iter().zip(other.fields()) {
            sum.iter_mut().zip(more).for_each(|(a, b)| *a += *b);
        }
    }

    /// Hands each tensor, as a tensor of its parameter's shape, to `take` together with the parameter's name.
    pub fn register(mut self, network: &Network, gradients: &mut burn::optim::GradientsParams, device: &Device) {
        struct Register<'a> {
            tensors: std::vec::IntoIter<Vec<f32>>,
            gradients: &'a mut burn::optim::GradientsParams,
            device: &'a Device,
        }
        impl ModuleVisitor for Register<'_> {
            fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
                let values = self.tensors.next().expect("as many tensors as parameters");
                let id: ParamId = param.id;
                let tensor = Tensor::<D>::from_data(TensorData::new(values, param.val().shape()), self.device);
                self.gradients.register(id, tensor);
            }
        }
        let tensors = self.fields().into_iter().map(std::mem::take).collect::<Vec<_>>().into_iter();
        network.visit(&mut Register { tensors, gradients, device });
    }
}
