import numpy as np


def choose_setting(validation, delete_err, *, before, most_lost):
    allowed = before - validation <= most_lost + 1e-12
    merit = np.where(allowed | ~allowed.any(), (validation + 1 - delete_err) / 2, -np.inf)
    return int(np.argmax(merit))
