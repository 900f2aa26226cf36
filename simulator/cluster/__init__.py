"""Replicas together: pools, routers, admission, transfers, autoscaling, failures."""

from simulator.cluster.cluster import Cluster
from simulator.cluster.fleet import Fleet
from simulator.cluster.pool import Pool
from simulator.cluster.routers import ROUTERS

__all__ = ["ROUTERS", "Cluster", "Fleet", "Pool"]
