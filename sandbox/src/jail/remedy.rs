//! What an owner can do when a layer cannot be set up.
//!
//! Owns: the known causes, by layer and by the system's answer, and the words for each. Never:
//! changes a setting. Called where a [`super::JailError`] is made.

use std::fs;
use std::io;

use super::layers::Layer;

/// What is known to help; `None` when nothing is.
pub(super) fn remedy(layer: Layer, source: &io::Error) -> Option<String> {
    remedy_for(layer, source, &Settings::read()).map(str::to_owned)
}

/// The machine's switches that commonly stand in the way.
#[derive(Debug, Default)]
struct Settings {
    apparmor_restricts: bool,
    debian_forbids: bool,
    no_user_namespaces: bool,
}

impl Settings {
    fn read() -> Self {
        let is = |path: &str, what: &str| fs::read_to_string(path).is_ok_and(|found| found.trim() == what);
        Self {
            apparmor_restricts: is("/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1"),
            debian_forbids: is("/proc/sys/kernel/unprivileged_userns_clone", "0"),
            no_user_namespaces: is("/proc/sys/user/max_user_namespaces", "0"),
        }
    }
}

fn remedy_for(layer: Layer, source: &io::Error, settings: &Settings) -> Option<&'static str> {
    match layer {
        Layer::Namespaces | Layer::Root if settings.no_user_namespaces => Some(
            "user namespaces are switched off: `sudo sysctl -w user.max_user_namespaces=15000` \
             (and the same line in /etc/sysctl.d to keep it)",
        ),
        Layer::Namespaces | Layer::Root if settings.debian_forbids => Some(
            "user namespaces are for root only here: `sudo sysctl -w kernel.unprivileged_userns_clone=1`",
        ),
        Layer::Namespaces | Layer::Root if settings.apparmor_restricts => Some(
            "AppArmor keeps user namespaces from programs without a profile (Ubuntu 23.10 and later): \
             `sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0`, or an AppArmor profile \
             with `userns,` for Potluck's worker programs",
        ),
        Layer::Namespaces | Layer::Root => match source.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => Some(
                "inside a container, let it make namespaces (Docker: `--security-opt seccomp=unconfined \
                 --security-opt apparmor=unconfined --security-opt systempaths=unconfined`), or run \
                 potluckd outside of it",
            ),
            Some(libc::ENOSYS | libc::EINVAL) => {
                Some("this kernel lacks namespaces or the mount calls of Linux 5.12: a newer kernel")
            }
            Some(libc::EROFS) => Some("/proc/sys is read-only here: run potluckd outside of the container"),
            _ => None,
        },
        Layer::Landlock => Some(
            "Linux 5.13 or later with Landlock switched on: `cat /sys/kernel/security/lsm` must name \
             landlock (boot with `lsm=landlock,...` in front of that list)",
        ),
        Layer::Seccomp => Some("a kernel with CONFIG_SECCOMP_FILTER, and no container that forbids seccomp"),
        Layer::Cgroup | Layer::Watchdog => Some(
            "run potluckd as a systemd service with `Delegate=yes`, or with `systemd-run --user --scope \
             -p Delegate=yes potluckd run`",
        ),
        Layer::Capabilities | Layer::Rlimits | Layer::Descriptors => None,
    }
}

/// What helps when a layer is not in force, as far as that is known without an error to look at.
pub(crate) fn remedy_when_absent(layer: Layer) -> Option<String> {
    remedy(layer, &io::Error::from(io::ErrorKind::Unsupported))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_known_cause_has_its_words() {
        let refused = io::Error::from_raw_os_error(libc::EPERM);
        let say = |layer, settings: Settings| remedy_for(layer, &refused, &settings).unwrap_or_default();
        let ubuntu = Settings { apparmor_restricts: true, ..Settings::default() };
        assert!(say(Layer::Root, ubuntu).contains("apparmor_restrict_unprivileged_userns=0"));
        let off = Settings { no_user_namespaces: true, apparmor_restricts: true, ..Settings::default() };
        assert!(say(Layer::Namespaces, off).contains("max_user_namespaces=15000"));
        let debian = Settings { debian_forbids: true, ..Settings::default() };
        assert!(say(Layer::Namespaces, debian).contains("unprivileged_userns_clone=1"));
        assert!(say(Layer::Namespaces, Settings::default()).contains("container"));
        assert!(say(Layer::Landlock, Settings::default()).contains("lsm="));
        assert_eq!(say(Layer::Descriptors, Settings::default()), "");
    }
}
