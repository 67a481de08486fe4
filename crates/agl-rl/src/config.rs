//! The shape of a Llama-architecture model.

/// How rotary frequencies are stretched beyond the trained context.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum RopeScaling {
    /// Positions are divided by `factor`.
    Linear {
        /// The divisor.
        factor: f64,
    },
    /// Llama 3's rule: long wavelengths are divided, short ones kept, those between blended.
    Llama3 {
        /// The divisor for long wavelengths.
        factor: f64,
        /// Wavelengths above `original_context / low_freq_factor` are divided.
        low_freq_factor: f64,
        /// Wavelengths below `original_context / high_freq_factor` are kept.
        high_freq_factor: f64,
        /// The context length before stretching.
        original_context: f64,
    },
}

/// The hyperparameters that decide shapes and arithmetic.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    /// Number of token ids.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the feed-forward layer.
    pub intermediate_size: usize,
    /// Number of transformer blocks.
    pub layers: usize,
    /// Number of query heads.
    pub heads: usize,
    /// Number of key/value heads; divides `heads`.
    pub kv_heads: usize,
    /// Width of one head; even.
    pub head_dim: usize,
    /// Added to the mean square in RMS normalization.
    pub norm_eps: f32,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// Stretching of the rotary frequencies.
    pub rope_scaling: Option<RopeScaling>,
    /// Longest sequence (prompt and answer) in tokens.
    pub context_length: usize,
    /// Whether the output projection is the embedding matrix.
    pub tied_embeddings: bool,
}

impl ModelConfig {
    /// The inverse rotary frequency of each of the `head_dim / 2` pairs, in radians per position.
    #[must_use]
    pub fn inverse_frequencies(&self) -> Vec<f64> {
        let half = self.head_dim / 2;
        (0..half)
            .map(|pair| {
                let frequency = self.rope_theta.powf(-(pair as f64) / half as f64);
                match self.rope_scaling {
                    None => frequency,
                    Some(RopeScaling::Linear { factor }) => frequency / factor,
                    Some(RopeScaling::Llama3 {
                        factor,
                        low_freq_factor,
                        high_freq_factor,
                        original_context,
                    }) => {
                        let wavelength = 2.0 * std::f64::consts::PI / frequency;
                        if wavelength < original_context / high_freq_factor {
                            frequency
                        } else if wavelength > original_context / low_freq_factor {
                            frequency / factor
                        } else {
                            let keep = (original_context / wavelength - low_freq_factor)
                                / (high_freq_factor - low_freq_factor);
                            (1.0 - keep) * frequency / factor + keep * frequency
                        }
                    }
                }
            })
            .collect()
    }

    /// Number of parameters of the matrices and norms.
    #[must_use]
    pub fn parameters(&self) -> usize {
        let attention = self.hidden_size * self.head_dim * (2 * self.heads + 2 * self.kv_heads);
        let block = attention + 3 * self.hidden_size * self.intermediate_size + 2 * self.hidden_size;
        let embeddings = self.vocab_size * self.hidden_size * if self.tied_embeddings { 1 } else { 2 };
        self.layers * block + embeddings + self.hidden_size
    }

    /// Says in words why these numbers can't describe a model, if they can't.
    ///
    /// # Errors
    /// The reason, naming the field.
    pub fn check(&self) -> Result<(), String> {
        let sizes = [
            ("vocab_size", self.vocab_size),
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("num_hidden_layers", self.layers),
            ("num_attention_heads", self.heads),
            ("num_key_value_heads", self.kv_heads),
            ("head_dim", self.head_dim),
            ("max_position_embeddings", self.context_length),
        ];
        for (name, size) in sizes {
            if size == 0 {
                return Err(format!("{name} is 0"));
            }
        }
        if !self.heads.is_multiple_of(self.kv_heads) {
            return Err(format!(
                "num_attention_heads ({}) is not a multiple of num_key_value_heads ({})",
                self.heads, self.kv_heads
            ));
        }
        if !self.head_dim.is_multiple_of(2) {
            return Err(format!("head_dim ({}) is odd", self.head_dim));
        }
        Ok(())
    }
}
