"""The device's half of artifact delivery: fetch a model, keep the ones before, roll back."""
