"""Replicas together: pools, routers, admission, KV transfer, autoscaling, failures, cost."""

from simulator.cluster.cluster import Cluster
from simulator.cluster.fleet import Fleet
from simulator.cluster.pool import Pool
from simulator.cluster.result import ClusterResult
from simulator.cluster.routers import ROUTERS
from simulator.cluster.simulate import simulate_cluster
from simulator.cluster.spec import ClusterSpec, PoolSpec

__all__ = [
    "ROUTERS",
    "Cluster",
    "ClusterResult",
    "ClusterSpec",
    "Fleet",
    "Pool",
    "PoolSpec",
    "simulate_cluster",
]
