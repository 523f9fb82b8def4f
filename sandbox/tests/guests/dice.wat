;; Gives 32 random bytes, and then the wall clock's seconds (64 bits).
(component
  (import "wasi:random/random@0.2.0" (instance $random
    (export "get-random-bytes" (func (param "len" u64) (result (list u8))))))
  (import "wasi:clocks/wall-clock@0.2.0" (instance $clock
    (type $t (record (field "seconds" u64) (field "nanoseconds" u32)))
    (export "datetime" (type $datetime (eq $t)))
    (export "now" (func (result $datetime)))))
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
  (core func $random (canon lower (func $random "get-random-bytes") (memory (core memory $memory "memory"))
    (realloc (core func $memory "realloc"))))
  (core func $now (canon lower (func $clock "now") (memory (core memory $memory "memory"))))
  (core module $Guest
    (import "memory" "memory" (memory 1))
    (import "host" "random" (func $random (param i64 i32)))
    (import "host" "now" (func $now (param i32)))
    ;; Where the answer lies: 0 for bytes or 1 for an error, and where and how long they are.
    (func $give (param $case i32) (param $at i32) (param $bytes i32) (result i32)
      (i32.store8 (i32.const 16) (local.get $case))
      (i32.store (i32.const 20) (local.get $at))
      (i32.store (i32.const 24) (local.get $bytes))
      (i32.const 16))
    (func (export "run") (param $at i32) (param $bytes i32) (result i32)
      (call $random (i64.const 32) (i32.const 64))
      (memory.copy (i32.const 128) (i32.load (i32.const 64)) (i32.const 32))
      (call $now (i32.const 160))
      (call $give (i32.const 0) (i32.const 128) (i32.const 40))))
  (core instance $guest (instantiate $Guest
    (with "memory" (instance $memory))
    (with "host" (instance
      (export "random" (func $random))
      (export "now" (func $now))))))
  (func (export "run") (param "input" (list u8)) (result (result (list u8) (error string)))
    (canon lift (core func $guest "run") (memory (core memory $memory "memory"))
      (realloc (core func $memory "realloc"))))
)
