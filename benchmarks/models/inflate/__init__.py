# SPDX-License-Identifier: Apache-2.0
"""Small models embedded in large shapes: the same function at the larger model's cost (design section 9).

What is not the small model is zero, with these exceptions:

- *Norms.* A mean of squares over H places of which h are used is smaller by h/H, so eps is multiplied by h/H and the
  weights by sqrt(h/H).
- *The constant.* Place h of the residual stream holds a constant κ, whose square takes the place of a part of eps:
  (Σx² + κ²)/H + eps' = h/H · (Σx²/h + eps) for eps' = (h·eps − κ²)/H. No layer reads it. After the final norm it
  is 1/rms(x), always positive, which lets a linear layer without bias push rows down.
- *Tokens that the small model lacks.* Their rows in an output layer are the row of token 0, and −2^24 at the
  constant. So their logit is that of token 0 less 2^24/rms(x): never the highest, whatever x is, and of no
  probability.
- *Heads.* Scores are divided by the root of the head's size, so queries are multiplied by sqrt(D/d). A rotation's
  frequency is theta^(-2j/D) for pair j. When D is a multiple of d, pair i goes to pair i·D/d, which has the same
  frequency, to the bit. Otherwise pair i stays pair i and theta becomes theta^(D/d), which is exact but for the
  rounding of frequencies. A key-value head is copied where the large shape shares one among fewer query heads.
- *Layers* beyond the small model's add zero to the residual stream, ResBlocks beyond the small drafter's likewise.

In float32 it is the same function up to rounding: with the committed model, whose logits reach 18, they move by 2e-5 at
most, which is also how far the model itself is from its own float64.
In bfloat16 the weights that are multiplied by a root are rounded again, unless the ratio is a power of four.
"""
