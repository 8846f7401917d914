"""Claims about what the system is asked."""

from igpt_tf import runtime


def test_memory_is_unlimited_where_the_system_does_not_say(tmp_path):
    assert runtime.available_memory(str(tmp_path / "none")) == float("inf")
    (tmp_path / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable:  7 kB\n")
    assert runtime.available_memory(str(tmp_path / "meminfo")) == 7168
