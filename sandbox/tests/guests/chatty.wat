;; Reports progress and logs its input as often as the first number of 32 bits in it says; gives the
;; number back.
(component
  (import "potluck:job/report@0.1.0" (instance $report
    (export "progress" (func (param "permille" u32) (param "note" string)))
    (export "log" (func (param "line" string)))))
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
  (core func $progress (canon lower (func $report "progress") (memory (core memory $memory "memory"))))
  (core func $log (canon lower (func $report "log") (memory (core memory $memory "memory"))))
  (core module $Guest
    (import "memory" "memory" (memory 1))
    (import "host" "progress" (func $progress (param i32 i32 i32)))
    (import "host" "log" (func $log (param i32 i32)))
    (data (i32.const 1024) "talking")
    ;; Where the answer lies: 0 for bytes or 1 for an error, and where and how long they are.
    (func $give (param $case i32) (param $at i32) (param $bytes i32) (result i32)
      (i32.store8 (i32.const 16) (local.get $case))
      (i32.store (i32.const 20) (local.get $at))
      (i32.store (i32.const 24) (local.get $bytes))
      (i32.const 16))
    (func (export "run") (param $at i32) (param $bytes i32) (result i32)
      (local $left i32)
      (local.set $left (i32.load (local.get $at)))
      (block $done
        (loop $again
          (br_if $done (i32.eqz (local.get $left)))
          (call $progress (local.get $left) (i32.const 1024) (i32.const 7))
          (call $log (i32.add (local.get $at) (i32.const 4)) (i32.sub (local.get $bytes) (i32.const 4)))
          (local.set $left (i32.sub (local.get $left) (i32.const 1)))
          (br $again)))
      (call $give (i32.const 0) (local.get $at) (i32.const 4))))
  (core instance $guest (instantiate $Guest
    (with "memory" (instance $memory))
    (with "host" (instance
      (export "progress" (func $progress))
      (export "log" (func $log))))))
  (func (export "run") (param "input" (list u8)) (result (result (list u8) (error string)))
    (canon lift (core func $guest "run") (memory (core memory $memory "memory"))
      (realloc (core func $memory "realloc"))))
)
