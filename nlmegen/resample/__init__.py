"""How sure an estimate is, found by doing the work again: bootstrap, sampling importance resampling, profiles."""
