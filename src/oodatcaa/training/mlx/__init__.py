"""The MLX-LM backend; together with pool/mlx the only place that imports mlx."""
