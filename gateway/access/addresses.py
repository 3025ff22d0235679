"""
Whose connections count together, by the address they come from.
"""

import ipaddress


def address_group(host: str) -> str:
    """The addresses that one customer of a network provider has: of IPv4 one, of IPv6 a whole /64.

    An IPv4 address that is written as IPv6 is one of IPv4. What is no address stays as it is.
    """
    address = _address(host)
    if address is None:
        return host
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    return str(ipaddress.IPv6Network((int(address) >> 64 << 64, 64)))


def of_this_machine(host: str) -> bool:
    """Whether it is a loopback address, or none (of a Unix socket): as a proxy that runs here has,
    and does not tell whose its connections are."""
    address = _address(host)
    return not host or (address is not None and address.is_loopback)


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        return address.ipv4_mapped
    return address
