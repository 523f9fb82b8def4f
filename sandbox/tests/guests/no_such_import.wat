;; A job that wants what no provider has.
(component
  (import "elsewhere:vault/keys@1.0.0" (instance $keys (export "steal" (func))))
  (core func $steal (canon lower (func $keys "steal")))
  (core module $Guest
    (import "host" "steal" (func $steal))
    (memory (export "memory") 1)
    (func (export "realloc") (param i32 i32 i32 i32) (result i32) (i32.const 1024))
    (func (export "run") (param i32 i32) (result i32) (call $steal) (i32.const 16)))
  (core instance $guest (instantiate $Guest (with "host" (instance (export "steal" (func $steal))))))
  (func (export "run") (param "input" (list u8)) (result (result (list u8) (error string)))
    (canon lift (core func $guest "run") (memory (core memory $guest "memory"))
      (realloc (core func $guest "realloc"))))
)
