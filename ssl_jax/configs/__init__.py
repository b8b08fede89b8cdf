"""The configs that come with the package, found by name: `ssl_jax.get_config("simclr:tiny")`. One file a method."""
