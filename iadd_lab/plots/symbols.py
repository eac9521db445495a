"""The method's symbols as matplotlib's mathtext sets them."""

THETA = r"$\theta$"
STUDENT = r"$\tilde{\theta}$"
START = r"$\theta_i$"
TARGET = r"$\theta_{i+K}$"
END = r"$\tilde{\theta}_{i,J}$"
