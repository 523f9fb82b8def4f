;; A component without a `run`.
(component)
