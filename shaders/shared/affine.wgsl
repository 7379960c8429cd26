// The weight and bias of a normalisation's channels, which a launch may lack. Needs the tensors `weight` and `bias` and
// the fields `affine`, `weight_offset` and `bias_offset` of `Params`.

// Weight and bias of channel c: 1 and 0 where there are none.
fn affine_of(c: u32) -> vec2<f32> {
    if p.affine == 0u {
        return vec2(1.0, 0.0);
    }
    return vec2(weight[p.weight_offset + c], bias[p.bias_offset + c]);
}
