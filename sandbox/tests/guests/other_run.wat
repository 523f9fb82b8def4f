;; A component whose `run` takes and gives something else than a job's.
(component
  (core module $Guest (func (export "run") (param i32) (result i32) (local.get 0)))
  (core instance $guest (instantiate $Guest))
  (func (export "run") (param "input" u32) (result u32) (canon lift (core func $guest "run"))))
