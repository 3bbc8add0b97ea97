"""The sparse network and the engines that compute it."""
