"""Reading measurement tables: every layout, strict cells."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calibrate.tables import COLUMNS, read_folder, read_table
from simulator.errors import InputError

HEADS = "32,8,128"
LAYOUTS = {
    "gemm": "gpu,src,dtype,m,n,k,latency_us\nh100_sxm,stack,bfloat16,16,4096,4096,20.0\n",
    "prefill_attention": "gpu,src,kernel,kv_dtype,n_q,n_kv,head_dim,batch_size,isl,latency_us\n"
    f"h100_sxm,s,k,bfloat16,{HEADS},2,1024,60\n",
    "decode_attention": "gpu,src,kernel,kv_dtype,n_q,n_kv,head_dim,batch_size,kv_len,latency_us\n"
    f"h100_sxm,s,k,fp8,{HEADS},32,1000,50\n",
    "moe": "gpu,src,dtype,num_tokens,hidden_size,inter_size,topk,num_experts,tp,ep,distribution,latency_us\n"
    "h100_sxm,s,bfloat16,64,4096,14336,2,8,2,1,balanced,500\n",
    "all_to_all": "gpu,src,impl,op,dtype,num_gpus,elements,bytes,latency_us\n"
    "h100_sxm,s,NCCL,alltoall,half,4,512,1024,20\n",
    "kv_write": "gpu,op,tokens,bytes,latency_us\nh100_sxm,kv_write,16,65536,3\n",
}


@pytest.mark.parametrize("family", LAYOUTS)
def test_layout_is_recognised_by_columns(tmp_path: Path, family: str) -> None:
    path = tmp_path / "t.csv"
    path.write_text(LAYOUTS[family])
    frames = read_table(path)
    assert list(frames) == [family]
    row = frames[family].iloc[0]
    assert set(COLUMNS[family]) <= set(frames[family].columns)
    assert row["gpu"] == "h100_sxm" and row["line"] == 2
    assert row["seconds"] == pytest.approx(float(LAYOUTS[family].rsplit(",", 1)[1]) * 1e-6)


def test_engine_tables_carry_context_and_skew(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text(
        f"gpu,kv_dtype,n_q,n_kv,head_dim,batch_size,chunk,context,latency_us\nl40s,bf16,{HEADS},1,512,2048,90\n"
    )
    row = read_table(path)["prefill_attention"].iloc[0]
    assert (row["chunk"], row["context"], row["num_seqs"]) == (512, 2048, 1)
    path.write_text(f"gpu,kv_dtype,n_q,n_kv,head_dim,kv_lens,latency_us\nl40s,bf16,{HEADS},100 200;700,30\n")
    row = read_table(path)["decode_attention"].iloc[0]
    assert (row["num_seqs"], row["sum_context"], row["max_context"]) == (3, 1000, 700)


def test_phase_table_holds_two_families(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    head = "gpu,phase,dtype,kv_dtype,n_q,n_kv,head_dim,batch_size,kv_len,latency_us,mfu\n"
    rows = [
        f"h20,{phase},bf16,bf16,{HEADS},{batch},4096,90,0.5\n"
        for phase, batch in (("decode", 8), ("prefill", 1))
    ]
    path.write_text(head + "".join(rows))
    frames = read_table(path)
    assert frames["decode_attention"]["sum_context"].tolist() == [8 * 4096]
    assert frames["prefill_attention"]["chunk"].tolist() == [4096]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("4096,20.0", "4096,fast", r"t.csv:2: latency_us: 'fast': must be a number above 0"),
        ("4096,20.0", "4096,-1", r"latency_us: '-1': must be a number above 0"),
        ("4096,20.0", "nan,20.0", r"k: 'nan': must be a number above 0"),
        ("latency_us", "time", "fit no known table"),
    ],
)
def test_bad_tables_are_one_line(tmp_path: Path, old: str, new: str, message: str) -> None:
    path = tmp_path / "t.csv"
    path.write_text(LAYOUTS["gemm"].replace(old, new))
    with pytest.raises(InputError, match=message):
        read_table(path)


@given(text=st.text(max_size=200))
@settings(max_examples=60, deadline=None)
def test_any_text_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.mktemp("fuzz") / "t.csv"
    path.write_text(text, encoding="utf-8", errors="replace")
    with pytest.raises(InputError):
        read_table(path)


def test_missing_file_and_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        read_table(tmp_path / "none.csv")
    with pytest.raises(InputError, match="holds no CSV file"):
        read_folder(tmp_path)
