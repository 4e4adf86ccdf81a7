"""Tables in, tensors out: NONMEM-format records become a `Population`, and go back without loss."""
