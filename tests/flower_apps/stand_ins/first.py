"""The first model, as the app's server makes it."""

from .task import get_model, get_model_params, set_initial_params


def initial():
    model = get_model("l2", 1)
    set_initial_params(model)
    return get_model_params(model)
