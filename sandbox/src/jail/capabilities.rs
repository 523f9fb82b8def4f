//! The layer that gives up every privilege.
//!
//! Owns: the capability sets and the promise never to gain privileges again. Never: keeps one "for
//! later": whatever needs one has run before. Called by [`super::enter`].

use rustix::io::Errno;
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, clear_ambient_capability_set,
    remove_capability_from_bounding_set, set_capabilities, set_no_new_privs,
};

use super::JailError;
use super::layers::Layer;

fn failed(act: &'static str) -> impl Fn(Errno) -> JailError {
    move |errno| JailError::new(Layer::Capabilities, act, errno)
}

/// Empties every capability set of this process, the bounding set included.
pub(super) fn drop_all() -> Result<(), JailError> {
    let had = capabilities(None).map_err(failed("reading the capabilities"))?;
    for number in 0..u64::BITS {
        let one = CapabilitySet::from_bits_retain(1 << number);
        match remove_capability_from_bounding_set(one) {
            Ok(()) => {}
            // The kernel knows no more of them.
            Err(Errno::INVAL) => break,
            // Nothing to give up, and without privileges the bounding set cannot be changed.
            Err(Errno::PERM) if had.permitted.is_empty() => break,
            Err(errno) => return Err(failed("emptying the bounding set")(errno)),
        }
    }
    clear_ambient_capability_set().map_err(failed("emptying the ambient set"))?;
    let none = CapabilitySets {
        effective: CapabilitySet::empty(),
        permitted: CapabilitySet::empty(),
        inheritable: CapabilitySet::empty(),
    };
    set_capabilities(None, none).map_err(failed("dropping the capabilities"))
}

/// From here on no program and no file gives this process a privilege. Landlock and seccomp ask for
/// this; it is set even when the plan leaves this layer out.
pub(super) fn no_new_privileges() -> Result<(), JailError> {
    set_no_new_privs(true).map_err(failed("giving up new privileges"))
}
