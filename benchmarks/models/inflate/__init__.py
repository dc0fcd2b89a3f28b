# SPDX-License-Identifier: Apache-2.0
"""Small models embedded in large shapes: the same function at the larger model's cost (design section 9).

Everything outside the small model is zero, with these exceptions:

- *Norms.* A mean of squares over H dimensions of which h are used is smaller by h/H, so eps is multiplied by h/H and
  the weights by sqrt(h/H).
- *The constant.* Dimension h of the residual stream holds a constant κ, whose square replaces a part of eps:
  (Σx² + κ²)/H + eps' = h/H · (Σx²/h + eps) for eps' = (h·eps − κ²)/H. No layer reads it. After the final norm it
  is 1/rms(x), always positive, so a linear layer without bias can lower rows with it. A shape with tied embeddings has
  none: its output layer is the embedding, so it takes only the same vocabulary, and there is nothing to lower.
- *Tokens that the small model lacks.* Their rows in an output layer are the row of token 0, and −2^24 at the
  constant. So their logit is that of token 0 minus 2^24/rms(x): for no x the highest, and with probability 0.
- *Heads.* Scores are divided by the root of the head's size, so queries are multiplied by sqrt(D/d). A rotation's
  frequency is theta^(-2j/D) for pair j. When D is a multiple of d, pair i goes to pair i·D/d, which has exactly
  the same frequency. Otherwise pair i stays pair i and theta becomes theta^(D/d), which is exact except for
  the rounding of frequencies. A key-value head is copied if the large shape shares it among fewer query heads.
- *Layers* beyond the small model's add zero to the residual stream, ResBlocks beyond the small drafter's likewise.

In float32 it is the same function up to rounding: the logits of the committed model, which reach 18, change by at most
2e-5, which is also the difference between the model in float32 and in float64.
In bfloat16 the weights that are multiplied by a root are rounded again, unless the ratio is a power of four, as it is
for SmolLM2-135M in the shape `smollm2-1b`.
"""
