;; Counts the folders, the environment variables and the arguments that it has (three numbers of 32
;; bits).
(component
  (import "wasi:filesystem/types@0.2.0" (instance $files (export "descriptor" (type (sub resource)))))
  (alias export $files "descriptor" (type $descriptor))
  (import "wasi:filesystem/preopens@0.2.0" (instance $preopens
    (alias outer 1 $descriptor (type $d))
    (export "descriptor" (type $descriptor (eq $d)))
    (export "get-directories" (func (result (list (tuple (own $descriptor) string)))))))
  (import "wasi:cli/environment@0.2.0" (instance $environment
    (export "get-environment" (func (result (list (tuple string string)))))
    (export "get-arguments" (func (result (list string))))))
  (core module $Memory
    (memory (export "memory") 1)
    (func (export "realloc") (param i32 i32 i32 i32) (result i32) (i32.const 4096)))
  (core instance $memory (instantiate $Memory))
  (core func $folders (canon lower (func $preopens "get-directories")
    (memory (core memory $memory "memory")) (realloc (core func $memory "realloc"))))
  (core func $variables (canon lower (func $environment "get-environment")
    (memory (core memory $memory "memory")) (realloc (core func $memory "realloc"))))
  (core func $arguments (canon lower (func $environment "get-arguments")
    (memory (core memory $memory "memory")) (realloc (core func $memory "realloc"))))
  (core module $Guest
    (import "memory" "memory" (memory 1))
    (import "host" "folders" (func $folders (param i32)))
    (import "host" "variables" (func $variables (param i32)))
    (import "host" "arguments" (func $arguments (param i32)))
    (func (export "run") (param $at i32) (param $bytes i32) (result i32)
      (call $folders (i32.const 64))
      (i32.store (i32.const 128) (i32.load (i32.const 68)))
      (call $variables (i32.const 64))
      (i32.store (i32.const 132) (i32.load (i32.const 68)))
      (call $arguments (i32.const 64))
      (i32.store (i32.const 136) (i32.load (i32.const 68)))
      (i32.store (i32.const 20) (i32.const 128))
      (i32.store (i32.const 24) (i32.const 12))
      (i32.const 16)))
  (core instance $guest (instantiate $Guest
    (with "memory" (instance $memory))
    (with "host" (instance
      (export "folders" (func $folders))
      (export "variables" (func $variables))
      (export "arguments" (func $arguments))))))
  (func (export "run") (param "input" (list u8)) (result (result (list u8) (error string)))
    (canon lift (core func $guest "run") (memory (core memory $memory "memory"))
      (realloc (core func $memory "realloc"))))
)
