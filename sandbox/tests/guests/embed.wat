;; Gives the vector of its input by the model `encoder`, or the words of the error.
(component
  (import "potluck:job/errors@0.1.0" (instance $errors
    (type $e (variant (case "unknown-model" string) (case "invalid-input" string)
      (case "limit-reached" string) (case "not-supported" string) (case "engine" string)))
    (export "error" (type (eq $e)))))
  (alias export $errors "error" (type $error))
  (import "potluck:job/embeddings@0.1.0" (instance $embeddings
    (alias outer 1 $error (type $e))
    (export "error" (type $error (eq $e)))
    (export "embed" (func (param "model" string) (param "texts" (list string))
      (result (result (list (list f32)) (error $error)))))))
  (core module $Memory
    (memory (export "memory") 1)
    ;; Memory is only ever handed out, never taken back.
    (global $free (mut i32) (i32.const 4096))
    (func $alloc (export "realloc") (param i32 i32 i32) (param $bytes i32) (result i32)
      (local $at i32)
      (local.set $at (global.get $free))
      (global.set $free
        (i32.and (i32.add (i32.add (local.get $at) (local.get $bytes)) (i32.const 15)) (i32.const -16)))
      (if (i32.gt_u (global.get $free) (i32.shl (memory.size) (i32.const 16)))
        (then
          (local.set $bytes (i32.add (i32.shr_u (local.get $bytes) (i32.const 16)) (i32.const 1)))
          (if (i32.eq (i32.const -1) (memory.grow (local.get $bytes))) (then (unreachable)))))
      (local.get $at)))
  (core instance $memory (instantiate $Memory))
  (core func $embed (canon lower (func $embeddings "embed") (memory (core memory $memory "memory"))
    (realloc (core func $memory "realloc"))))
  (core module $Guest
    (import "memory" "memory" (memory 1))
    (import "host" "embed" (func $embed (param i32 i32 i32 i32 i32)))
    (data (i32.const 1024) "encoder")
    ;; Where the answer lies: 0 for bytes or 1 for an error, and where and how long they are.
    (func $give (param $case i32) (param $at i32) (param $bytes i32) (result i32)
      (i32.store8 (i32.const 16) (local.get $case))
      (i32.store (i32.const 20) (local.get $at))
      (i32.store (i32.const 24) (local.get $bytes))
      (i32.const 16))
    (func (export "run") (param $at i32) (param $bytes i32) (result i32)
      (local $vector i32)
      ;; A list of one text.
      (i32.store (i32.const 96) (local.get $at))
      (i32.store (i32.const 100) (local.get $bytes))
      (call $embed (i32.const 1024) (i32.const 7) (i32.const 96) (i32.const 1) (i32.const 64))
      (if (i32.load8_u (i32.const 64))
        (then (return (call $give (i32.const 1) (i32.load (i32.const 72)) (i32.load (i32.const 76))))))
      (local.set $vector (i32.load (i32.const 68)))
      (call $give (i32.const 0) (i32.load (local.get $vector))
        (i32.shl (i32.load offset=4 (local.get $vector)) (i32.const 2)))))
  (core instance $guest (instantiate $Guest
    (with "memory" (instance $memory))
    (with "host" (instance
      (export "embed" (func $embed))))))
  (func (export "run") (param "input" (list u8)) (result (result (list u8) (error string)))
    (canon lift (core func $guest "run") (memory (core memory $memory "memory"))
      (realloc (core func $memory "realloc"))))
)
