"""How far outputs move when the parameters are perturbed: the expectation in closed form."""
