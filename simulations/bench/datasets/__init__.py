"""Builds benchmark data sets from packages of other projects."""
