"""Networks: backbones, heads, normalisation, and the two branches."""
