"""
Which addresses count as one caller's.
"""

import pytest

from dalston.gateway.access.addresses import address_group, of_this_machine


@pytest.mark.parametrize(
    ("host", "group"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:aaaa::1", "2001:db8:1:2::/64"),
        ("2001:db8:1:2:ffff:ffff:ffff:ffff", "2001:db8:1:2::/64"),
        ("2001:db8:1:3::1", "2001:db8:1:3::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("a name", "a name"),
        ("", ""),
    ],
)
def test_an_address_counts_by_itself_and_one_of_ipv6_with_its_network(
    host: str, group: str
) -> None:
    assert address_group(host) == group


@pytest.mark.parametrize(
    ("host", "here"),
    [
        ("127.0.0.1", True),
        ("127.8.9.10", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("", True),
        ("192.0.2.7", False),
        ("2001:db8::1", False),
        ("a name", False),
    ],
)
def test_a_loopback_address_is_of_this_machine(host: str, here: bool) -> None:
    assert of_this_machine(host) is here
