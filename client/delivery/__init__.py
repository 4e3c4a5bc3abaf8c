"""The device's part of artifact delivery: fetch models, keep earlier versions, roll back."""
