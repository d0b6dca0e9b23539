//! HuBERTs of fairseq: what their `.pt` files say of the network, and how they call its tensors.

use std::path::Path;

use super::hubert::{Convolution, HubertConfig, Names, Opened, StemNorm};
use super::pickle::{Id, Pickle, Value};
use super::{ImportError, MOST_CONVOLUTIONS};
use crate::weights::Weights;

/// fairseq's name of what Hugging Face calls `name`.
pub(super) fn fairseq_name(name: &str, config: &HubertConfig) -> String {
    if let Some(rest) = name.strip_prefix("feature_extractor.conv_layers.") {
        let (layer, field) = rest.split_once('.').unwrap_or((rest, ""));
        // A layer norm stands between two transpositions there.
        let norm = if config.stem_norm == StemNorm::Layer { "2.1" } else { "2" };
        let field = field.replacen("conv.", "0.", 1).replacen("layer_norm.", &format!("{norm}."), 1);
        return format!("feature_extractor.conv_layers.{layer}.{field}");
    }
    let convolution = if config.position_batch_norm { "encoder.pos_conv.1" } else { "encoder.pos_conv.0" };
    const PARTS: [(&str, &str); 6] = [
        ("feature_projection.layer_norm.", "layer_norm."),
        ("feature_projection.projection.", "post_extract_proj."),
        (".attention.", ".self_attn."),
        (".layer_norm.", ".self_attn_layer_norm."),
        (".feed_forward.intermediate_dense.", ".fc1."),
        (".feed_forward.output_dense.", ".fc2."),
    ];
    if let Some(field) = name.strip_prefix("encoder.pos_conv_embed.conv") {
        return format!("{convolution}{field}");
    }
    if let Some(field) = name.strip_prefix("encoder.pos_conv_embed.batch_norm.") {
        return format!("encoder.pos_conv.0.{field}");
    }
    if name.starts_with("encoder.layer_norm.") {
        return name.to_owned();
    }
    PARTS.iter().find(|(ours, _)| name.contains(ours)).map_or_else(|| name.to_owned(), |(ours, theirs)| name.replacen(ours, theirs, 1))
}

pub(super) fn open_fairseq(path: &Path) -> Result<Opened, ImportError> {
    let wrong = |message: String| ImportError::Config { path: path.into(), message };
    let weights = Weights::open(path)?;
    let torch = weights.torch().ok_or_else(|| wrong("a folder of Hugging Face or a .pt of fairseq is expected".into()))?;
    let pickle = &torch.pickle;
    let root = pickle.root();
    let section = |name: &str| pickle.get(pickle.get(root, "cfg")?, name);
    let model = section("model").or_else(|| pickle.get(root, "args"));
    let model = model.ok_or_else(|| wrong("it has neither `cfg` nor `args`: no checkpoint of fairseq".into()))?;
    let task = section("task").or_else(|| pickle.get(root, "args"));
    let config = fairseq_config(&Settings { pickle, id: model }, task.map(|id| Settings { pickle, id })).map_err(wrong)?;
    Ok((config, weights, Names::Fairseq))
}

/// Settings of fairseq: a dictionary, a namespace, or a node of OmegaConf (whose values hide in `_content` and `_val`).
struct Settings<'a> {
    pickle: &'a Pickle,
    id: Id,
}

impl Settings<'_> {
    fn get(&self, key: &str) -> Option<Id> {
        let direct = self.pickle.get(self.id, key);
        let found = direct.or_else(|| self.pickle.get(self.pickle.get(self.id, "_content")?, key))?;
        Some(self.pickle.get(found, "_val").unwrap_or(found))
    }
    fn size(&self, key: &str, default: usize) -> Result<usize, String> {
        match self.get(key).map(|id| self.pickle.int(id)) {
            None => Ok(default),
            Some(Some(value)) => usize::try_from(value).map_err(|_| format!("{key} is {value}")),
            Some(None) => Err(format!("{key} is no whole number")),
        }
    }
    fn flag(&self, key: &str) -> bool {
        self.get(key).is_some_and(|id| matches!(self.pickle.value(id), Value::Bool(true)))
    }
    /// Text, or the one argument of an enumeration.
    fn text(&self, key: &str) -> Option<&str> {
        let id = self.get(key)?;
        self.pickle.text(id).or_else(|| self.pickle.text(*self.pickle.object(id)?.arguments.first()?))
    }
}

fn fairseq_config(model: &Settings, task: Option<Settings>) -> Result<HubertConfig, String> {
    // `arch` is from before fairseq had configurations.
    let name = model.text("_name").or_else(|| model.text("arch")).unwrap_or("hubert");
    if name != "hubert" {
        return Err(format!("the model is `{name}`, a HuBERT without a head says `hubert`"));
    }
    let activation = model.text("activation_fn").unwrap_or("gelu");
    if activation != "gelu" {
        return Err(format!("activation `{activation}`: only gelu is known"));
    }
    let layers = model.text("conv_feature_layers").unwrap_or("[(512,10,5)] + [(512,3,2)] * 4 + [(512,2,2)] * 2");
    let stem_norm = match model.text("extractor_mode").unwrap_or("default") {
        "default" => StemNorm::Group,
        "layer_norm" => StemNorm::Layer,
        other => return Err(format!("extractor_mode `{other}`: default and layer_norm are known")),
    };
    Ok(HubertConfig {
        stem: convolutions(layers)?,
        stem_norm,
        stem_bias: model.flag("conv_bias"),
        projection_norm: true,
        width: model.size("encoder_embed_dim", 768)?,
        layers: model.size("encoder_layers", 12)?,
        heads: model.size("encoder_attention_heads", 12)?,
        feed_forward: model.size("encoder_ffn_embed_dim", 3072)?,
        position_kernel: model.size("conv_pos", 128)?,
        position_groups: model.size("conv_pos_groups", 16)?,
        position_batch_norm: model.flag("conv_pos_batch_norm"),
        norm_first: model.flag("layer_norm_first"),
        epsilon: 1e-5,
        normalise: task.is_some_and(|task| task.flag("normalize")),
    })
}

/// fairseq's list of convolutions, an expression such as `[(512,10,5)] + [(512,3,2)] * 4`.
fn convolutions(text: &str) -> Result<Vec<Convolution>, String> {
    let wrong = || format!("conv_feature_layers `{text}` cannot be read");
    let number = |text: &str| text.trim().parse::<usize>().map_err(|_| wrong());
    let mut layers = Vec::new();
    for term in text.split('+') {
        let (list, times) = term.rsplit_once('*').filter(|(list, _)| list.trim_end().ends_with(']')).unwrap_or((term, "1"));
        let list = list.trim().strip_prefix('[').and_then(|list| list.strip_suffix(']')).ok_or_else(wrong)?;
        let mut group = Vec::new();
        for item in list.split(')').map(|item| item.trim_matches([' ', ',', '('])).filter(|item| !item.is_empty()) {
            let numbers = item.split(',').map(number).collect::<Result<Vec<_>, _>>()?;
            let [channels, kernel, stride] = numbers[..] else { return Err(wrong()) };
            group.push(Convolution { channels, kernel, stride });
        }
        // One more than there may be, so that it is refused and not cut off.
        for _ in 0..number(times)?.min(MOST_CONVOLUTIONS + 1) {
            layers.extend_from_slice(&group);
            if layers.len() > MOST_CONVOLUTIONS {
                return Err(format!("more than {MOST_CONVOLUTIONS} convolutions in conv_feature_layers"));
            }
        }
    }
    Ok(layers)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of a dictionary of text to text.
    fn config(entries: &[(&str, &str)]) -> Result<HubertConfig, String> {
        let text = |text: &str| [b"X".as_slice(), &(text.len() as u32).to_le_bytes(), text.as_bytes()].concat();
        let items: Vec<u8> = entries.iter().flat_map(|(key, value)| [text(key), text(value), b"s".to_vec()].concat()).collect();
        let pickle = Pickle::read(&[b"}".to_vec(), items, b".".to_vec()].concat()).expect("a dictionary");
        fairseq_config(&Settings { id: pickle.root(), pickle: &pickle }, None)
    }

    #[test]
    fn convolutions_of_fairseq_are_read() {
        let layers = convolutions("[(512,10,5)] + [(512,3,2)] * 4 + [(512,2,2)] * 3").expect("reads");
        assert_eq!(layers.len(), 8);
        let config = HubertConfig { stem: layers, ..config(&[]).expect("all defaults") };
        assert_eq!((config.hop(), config.receptive_field(), config.frames(16_000)), (640, 720, 24));
        assert!(convolutions("__import__('os')").is_err());
        assert_eq!(convolutions("[(512,3,2)] * 60 + [(512,3,2)] * 4").map(|layers| layers.len()), Ok(64));
        for long in ["[(512,3,2)] * 65", "[(512,3,2)] * 60 + [(512,3,2)] * 5", "[(1,1,1),(1,1,1)] * 18446744073709551615"] {
            assert!(convolutions(long).expect_err("too many").contains("more than 64 convolutions"), "{long}");
        }
        assert_eq!(convolutions("[] * 18446744073709551615"), Ok(Vec::new()));
    }

    #[test]
    fn only_a_hubert_of_fairseq_is_taken_for_one() {
        let plain = config(&[]).expect("all defaults");
        assert_eq!(config(&[("_name", "hubert"), ("activation_fn", "gelu"), ("extractor_mode", "default")]), Ok(plain.clone()));
        assert_eq!(config(&[("extractor_mode", "layer_norm")]).map(|config| config.stem_norm), Ok(StemNorm::Layer));
        plain.check().expect("HuBERT base");
        for (key, value) in
            [("_name", "wav2vec2"), ("_name", "hubert_ctc"), ("arch", "data2vec"), ("activation_fn", "relu"), ("extractor_mode", "mel")]
        {
            let message = config(&[(key, value)]).expect_err("must be refused");
            assert!(message.contains(value), "{message}");
        }
    }

    #[test]
    fn names_of_fairseq() {
        let base = config(&[]).expect("all defaults");
        let large = HubertConfig { stem_norm: StemNorm::Layer, position_batch_norm: true, ..base.clone() };
        for (ours, theirs) in [
            ("feature_extractor.conv_layers.0.conv.weight", "feature_extractor.conv_layers.0.0.weight"),
            ("feature_extractor.conv_layers.0.layer_norm.bias", "feature_extractor.conv_layers.0.2.bias"),
            ("feature_projection.layer_norm.weight", "layer_norm.weight"),
            ("feature_projection.projection.bias", "post_extract_proj.bias"),
            ("encoder.pos_conv_embed.conv.weight_g", "encoder.pos_conv.0.weight_g"),
            ("encoder.layers.3.attention.q_proj.weight", "encoder.layers.3.self_attn.q_proj.weight"),
            ("encoder.layers.3.layer_norm.weight", "encoder.layers.3.self_attn_layer_norm.weight"),
            ("encoder.layers.3.final_layer_norm.weight", "encoder.layers.3.final_layer_norm.weight"),
            ("encoder.layers.3.feed_forward.output_dense.bias", "encoder.layers.3.fc2.bias"),
            ("encoder.layer_norm.weight", "encoder.layer_norm.weight"),
        ] {
            assert_eq!(fairseq_name(ours, &base), theirs);
        }
        assert_eq!(fairseq_name("feature_extractor.conv_layers.2.layer_norm.bias", &large), "feature_extractor.conv_layers.2.2.1.bias");
        assert_eq!(fairseq_name("encoder.pos_conv_embed.conv.bias", &large), "encoder.pos_conv.1.bias");
        assert_eq!(fairseq_name("encoder.pos_conv_embed.batch_norm.running_mean", &large), "encoder.pos_conv.0.running_mean");
    }
}
