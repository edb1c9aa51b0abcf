"""A finished example that travels in the package: the best channels of DINOv2-S on the photographs."""
