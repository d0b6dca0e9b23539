//! Which form a stage gets: candidates, the form that is wanted first, and the first of them that keeps its budget.
//!
//! A candidate that misses gives way to the next, and the reason says so; where the user named the form, missing is an error instead.

use anyhow::{Result, bail};
use sa_device::bundle::StageName;

use crate::onnx::Precision;

/// The export went beyond its budget: exit code 5.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct BeyondBudget(pub String);

/// What to make of a stage.
#[derive(Clone, Debug)]
pub struct Choice {
    /// Forms in the order of preference; all but the last are held to the stage's budget.
    pub candidates: Vec<Precision>,
    /// The user named this form: missing the budget is an error.
    pub named: bool,
    /// Why this form comes first.
    pub reason: &'static str,
}

impl Choice {
    /// What `--int8` means for linear layers: 8-bit products, in which a weight is a quarter of the memory and of what is read at a step;
    /// 8 bits on disk only where those lose too much or are slower than fp32.
    pub fn int8() -> Self {
        use Precision::{Fp16, Fp32, Int8, Int8Weights};
        Self {
            candidates: vec![Int8, Int8Weights, Fp16, Fp32],
            named: false,
            reason: "8-bit products: a quarter of the weights' memory and its traffic, and no slower than fp32",
        }
    }

    /// What `--int8` means for a network of convolutions, of which neither engine computes any in 8 bits faster.
    pub fn convolutions() -> Self {
        use Precision::{Fp16, Fp32};
        Self { candidates: vec![Fp16, Fp32], named: false, reason: "convolutions gain nothing from 8 bits; half precision on disk" }
    }

    /// What `--int4` means for a stage: 4-bit blocks where one position reads every weight once; elsewhere what `--int8` means.
    pub fn int4(stage: StageName) -> Self {
        let mut choice = Self::int8();
        match stage {
            StageName::Tokenizer | StageName::Decoder => choice,
            StageName::Lm | StageName::Head => {
                choice.candidates.insert(0, Precision::Int4);
                Self { reason: "one position a step reads every weight once: 4 bits are an eighth of the memory traffic", ..choice }
            }
        }
    }

    /// Exactly this form.
    pub fn named(precision: Precision) -> Self {
        Self { candidates: vec![precision], named: true, reason: "asked for" }
    }

    /// Single precision, where nobody asked for anything.
    pub fn fp32() -> Self {
        Self { candidates: vec![Precision::Fp32], named: false, reason: "the default: nothing smaller was asked for" }
    }
}

/// A form that was taken.
pub struct Chosen<T> {
    /// What trying it gave.
    pub made: T,
    pub precision: Precision,
    /// Why this form: the choice's reason, or what the forms before it missed.
    pub reason: String,
}

/// The first form that misses nothing. `attempt` makes a form and says what it misses, if anything.
///
/// # Errors
/// [`BeyondBudget`] where a named form misses and `force` is not set, or where every form misses; what `attempt` fails with.
pub fn first_within<T>(
    stage: StageName,
    choice: &Choice,
    force: bool,
    mut attempt: impl FnMut(Precision) -> Result<(T, Option<String>)>,
) -> Result<Chosen<T>> {
    let mut notes = Vec::new();
    for &precision in &choice.candidates {
        let (made, missed) = attempt(precision)?;
        match missed {
            Some(missed) if choice.named && !force => {
                bail!(BeyondBudget(format!("{stage} in {precision}: {missed}; leave the form to --int8, or accept it by --force")))
            }
            Some(missed) if !choice.named => notes.push(format!("{precision} was left: {missed}")),
            missed => {
                let reason = match missed {
                    Some(missed) => format!("forced: {missed}"),
                    None if notes.is_empty() => choice.reason.to_owned(),
                    None => notes.join("; "),
                };
                return Ok(Chosen { made, precision, reason });
            }
        }
    }
    bail!(BeyondBudget(format!("{stage}: no form is within the budget: {}", notes.join("; "))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_form_that_misses_gives_way_unless_it_was_named() {
        let attempt = |precision| Ok((precision, (precision == Precision::Int8).then(|| "half of the units".to_owned())));
        let open = Choice { candidates: vec![Precision::Int8, Precision::Fp16, Precision::Fp32], named: false, reason: "small" };
        let chosen = first_within(StageName::Lm, &open, false, attempt).expect("fp16 is within");
        assert_eq!((chosen.made, chosen.precision), (Precision::Fp16, Precision::Fp16));
        assert_eq!(chosen.reason, "int8 was left: half of the units");
        let named = Choice::named(Precision::Int8);
        let error = first_within(StageName::Lm, &named, false, attempt).map(|_| ()).expect_err("it was named");
        assert!(error.is::<BeyondBudget>() && error.to_string().contains("lm in int8: half of the units"), "{error}");
        assert_eq!(first_within(StageName::Lm, &named, true, attempt).expect("forced").reason, "forced: half of the units");
        let within = Choice::named(Precision::Fp16);
        assert_eq!(first_within(StageName::Lm, &within, true, attempt).expect("nothing to force").reason, "asked for");
        let none = Choice { candidates: vec![Precision::Int8], ..open };
        assert!(first_within(StageName::Lm, &none, false, attempt).is_err());
    }
}
