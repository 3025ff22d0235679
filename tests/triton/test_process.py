from dalston.triton.process import free_port


def test_a_port_is_not_given_to_two():
    ports = [free_port() for _ in range(100)]
    assert len(set(ports)) == len(ports)
