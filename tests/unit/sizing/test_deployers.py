"""What the guide says about Slurm and Kubernetes can be built, where Dask's deployers are installed."""

from __future__ import annotations

import warnings

import pytest


def test_a_slurm_job_starts_one_worker_per_core() -> None:
    jobqueue = pytest.importorskip("dask_jobqueue", reason="dask-jobqueue is not installed")
    scheduler = {"host": "127.0.0.1", "dashboard_address": "127.0.0.1:0"}
    limits = {"cores": 16, "processes": 16, "memory": "32GB", "walltime": "04:00:00"}
    with jobqueue.SLURMCluster(**limits, scheduler_options=scheduler) as cluster:
        script = cluster.job_script()
        assert "#SBATCH --cpus-per-task=16" in script
        assert "--nthreads 1" in script
        assert "--nworkers 16" in script
        assert cluster.scheduler_address in script


def test_a_kubernetes_cluster_runs_this_package_in_its_image() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the clients that it imports
        operator = pytest.importorskip("dask_kubernetes.operator", reason="dask-kubernetes is not installed")
    command = ["dask", "worker", "--nthreads", "1"]
    spec = operator.make_cluster_spec(
        name="sweeps", image="registry.example/servesim:0.1", n_workers=40, worker_command=command
    )["spec"]
    assert spec["worker"]["replicas"] == 40
    (worker,) = spec["worker"]["spec"]["containers"]
    assert worker["image"] == spec["scheduler"]["spec"]["containers"][0]["image"]
    assert worker["args"][: len(command)] == command
