//! Was there any sound at all?

/// Window in samples: 20 ms.
const WINDOW: usize = 320;

/// Opens at the first window that is loud enough, and stays open.
#[derive(Debug)]
pub struct Gate {
    /// Energy of a window that opens it.
    threshold: f64,
    energy: f64,
    filled: usize,
    open: bool,
}

impl Gate {
    /// Opens at `dbfs` (root mean square, dB below full scale).
    pub fn new(dbfs: f64) -> Self {
        Self { threshold: WINDOW as f64 * 10f64.powf(dbfs / 10.0), energy: 0.0, filled: 0, open: false }
    }

    /// Takes in samples; true from the first loud window on.
    pub fn step(&mut self, samples: &[f32]) -> bool {
        if self.open {
            return true;
        }
        for sample in samples {
            self.energy += f64::from(*sample) * f64::from(*sample);
            self.filled += 1;
            if self.filled == WINDOW {
                self.open |= self.energy >= self.threshold;
                (self.energy, self.filled) = (0.0, 0);
            }
        }
        self.open
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn opens_at_sound_only() {
        let mut gate = Gate::new(-55.0);
        assert!(!gate.step(&[0.0; 16_000]));
        // -60 dBFS of noise floor.
        let floor: Vec<f32> = (0..16_000).map(|i| if i % 2 == 0 { 0.001 } else { -0.001 }).collect();
        assert!(!gate.step(&floor));
        assert!(gate.step(&[0.01; 640]));
        assert!(gate.step(&[0.0; 640]), "stays open");
    }
}
