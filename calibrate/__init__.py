"""Calibration: what is measured, how laws are fitted to it, and how predictions are held against measurements.

``calibrate.tables`` reads tables of operator timings, ``calibrate.fit`` turns them into the laws of a hardware profile,
``calibrate.serving`` runs measured serving experiments through the simulator.
"""
