"""Adapters as objects of algebra: functions from adapters to adapters and reports. No model is needed,
unless a function says so.
"""
