"""nvidia-smi's XML: what is wrong with a GPU, under the element names of old and new drivers; and a driver that is broken."""

import pytest

from uniaudio.cluster.preflight import gpus

HEALTHY = """<nvidia_smi_log><driver_version>{driver}</driver_version><gpu id="00000000:18:00.0">
<product_name>NVIDIA H100 80GB HBM3</product_name>
<fb_memory_usage><total>81559 MiB</total><used>{used} MiB</used></fb_memory_usage><temperature><gpu_temp>84 C</gpu_temp></temperature>
<ecc_errors><volatile><sram_uncorrectable_parity>0</sram_uncorrectable_parity><dram_correctable>9</dram_correctable>
<dram_uncorrectable>{errors}</dram_uncorrectable></volatile><aggregate><dram_uncorrectable>7</dram_uncorrectable></aggregate></ecc_errors>
<remapped_rows><remapped_row_pending>{pending}</remapped_row_pending><remapped_row_failure>No</remapped_row_failure></remapped_rows>
<{reasons}s><{reasons}_gpu_idle>Active</{reasons}_gpu_idle><{reasons}_hw_thermal_slowdown>{hot}</{reasons}_hw_thermal_slowdown></{reasons}s>
<pci><pci_gpu_link_info><link_widths><max_link_width>16x</max_link_width><current_link_width>{lanes}x</current_link_width></link_widths>
</pci_gpu_link_info></pci></gpu></nvidia_smi_log>"""
WELL = {"driver": "580.159", "used": 4, "errors": 0, "pending": "No", "hot": "Not Active", "lanes": 16, "reasons": "clocks_event_reason"}


def faults(**changes: object) -> tuple[str, ...]:
    (gpu,) = gpus.read_xml(HEALTHY.format(**WELL | changes))
    assert (gpu.name, gpu.driver) == ("NVIDIA H100 80GB HBM3", "580.159")
    return gpu.faults


def test_a_healthy_gpu_has_no_fault():
    assert faults() == ()


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"errors": 2}, "GPU 0: uncorrectable memory errors (dram_uncorrectable 2)"),
        ({"pending": "Yes"}, "GPU 0: remapped memory rows wait for a reset"),
        ({"hot": "Active"}, "GPU 0: throttled (hw_thermal_slowdown, 84 C)"),
        ({"hot": "Active", "reasons": "clocks_throttle_reason"}, "GPU 0: throttled (hw_thermal_slowdown, 84 C)"),
        ({"lanes": 8}, "GPU 0: PCIe link of 8 lanes instead of 16"),
        ({"used": 30000}, "GPU 0: 30000 MiB in use before the job: another process"),
    ],
)
def test_a_sick_gpu_is_described(changes, fault):
    assert faults(**changes) == (fault,)


@pytest.mark.parametrize(
    ("script", "fault"),
    [
        ("echo 'Unable to determine the device handle'; exit 15", "nvidia-smi failed: Unable to determine the device handle"),
        ("exec sleep 60", "nvidia-smi did not answer within 1 s"),
    ],
)
def test_a_broken_driver_is_a_broken_gpu(script, fault, tmp_path, monkeypatch):
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/bash\n{script}\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(gpus, "_SECONDS", 1)
    assert [gpu.faults for gpu in gpus.find_gpus()] == [(fault,)]


def test_without_driver_there_is_no_gpu_and_no_xml_is_an_error(monkeypatch):
    monkeypatch.setenv("PATH", "/nonexistent")
    assert gpus.find_gpus() == []
    with pytest.raises(ValueError, match="wrote no XML"):
        gpus.read_xml("Field not found")
