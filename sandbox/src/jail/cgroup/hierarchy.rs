//! Where this process's cgroups are in the file system.
//!
//! Owns: reading `/proc/self/cgroup` and `/proc/self/mountinfo` together. Never: writes anything.
//! Called by [`super::Cgroup`].

use std::fs;
use std::path::{Path, PathBuf};

/// This process's place in every hierarchy that is mounted.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Hierarchies {
    places: Vec<Place>,
}

/// One hierarchy.
#[derive(Debug, PartialEq, Eq)]
struct Place {
    /// The version 1 controllers; empty for version 2.
    controllers: Vec<String>,
    mount: PathBuf,
    /// This process's own folder.
    own: PathBuf,
}

impl Hierarchies {
    pub(super) fn read() -> Self {
        let text = |path| fs::read_to_string(path).unwrap_or_default();
        Self::parse(&text("/proc/self/cgroup"), &text("/proc/self/mountinfo"))
    }

    fn parse(cgroups: &str, mounts: &str) -> Self {
        let mounts: Vec<_> = mounts.lines().filter_map(Mount::parse).collect();
        let mut places = Vec::new();
        for line in cgroups.lines() {
            let mut fields = line.splitn(3, ':').skip(1);
            let (Some(names), Some(path)) = (fields.next(), fields.next()) else { continue };
            let controllers: Vec<String> =
                names.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect();
            let Some(mount) = mounts.iter().find(|mount| mount.serves(&controllers)) else { continue };
            // Where the mount shows only a part of the hierarchy, a path outside of it is not there.
            let Ok(below) = Path::new(path).strip_prefix(&mount.root) else { continue };
            let mount = mount.point.clone();
            places.push(Place { controllers, own: mount.join(below), mount });
        }
        Self { places }
    }

    /// Version 2 folders under which a worker's could be: this process's own and those above it.
    pub(super) fn unified_folders(&self) -> Vec<PathBuf> {
        self.folders(|place| place.controllers.is_empty())
    }

    /// The same for a version 1 controller.
    pub(super) fn folders_of(&self, controller: &str) -> Vec<PathBuf> {
        self.folders(|place| place.controllers.iter().any(|name| name == controller))
    }

    fn folders(&self, which: impl Fn(&Place) -> bool) -> Vec<PathBuf> {
        let Some(place) = self.places.iter().find(|place| which(place)) else { return Vec::new() };
        let inside = |folder: &&Path| folder.starts_with(&place.mount);
        place.own.ancestors().take_while(inside).map(Path::to_path_buf).collect()
    }
}

/// A mounted hierarchy.
#[derive(Debug)]
struct Mount {
    root: PathBuf,
    point: PathBuf,
    kind: String,
    options: String,
}

impl Mount {
    /// A line of mountinfo: `36 35 98:0 /root /point options [tags] - kind source super-options`.
    fn parse(line: &str) -> Option<Self> {
        let (before, after) = line.split_once(" - ")?;
        let mut fields = before.split(' ').skip(3);
        let (root, point) = (fields.next()?, fields.next()?);
        let mut fields = after.split(' ');
        let (kind, _source, options) = (fields.next()?, fields.next()?, fields.next().unwrap_or_default());
        kind.starts_with("cgroup").then(|| Self {
            root: root.into(),
            point: point.into(),
            kind: kind.to_owned(),
            options: options.to_owned(),
        })
    }

    fn serves(&self, controllers: &[String]) -> bool {
        match controllers.first() {
            None => self.kind == "cgroup2",
            Some(first) => self.kind == "cgroup" && self.options.split(',').any(|option| option == first),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_systemd_users_place_is_found_with_all_above_it() {
        let read = Hierarchies::parse(
            "0::/user.slice/app.slice/potluck.service\n",
            "30 25 0:26 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n",
        );
        let all = ["/user.slice/app.slice/potluck.service", "/user.slice/app.slice", "/user.slice", ""];
        let all = all.map(|path| PathBuf::from(format!("/sys/fs/cgroup{path}")));
        assert_eq!(read.unified_folders(), all);
        assert!(read.folders_of("memory").is_empty());
    }

    #[test]
    fn version_1_controllers_have_each_their_own_place() {
        let read = Hierarchies::parse(
            "5:memory:/docker/abc\n4:cpu,cpuacct:/\n3:name=systemd:/\n0::/\n",
            "31 1 0:1 /docker/abc /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
             32 1 0:2 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
             33 1 0:3 / /proc rw - proc proc rw\n",
        );
        assert_eq!(read.folders_of("memory"), [PathBuf::from("/sys/fs/cgroup/memory")]);
        assert_eq!(read.folders_of("cpu"), [PathBuf::from("/sys/fs/cgroup/cpu,cpuacct")]);
        assert!(read.folders_of("pids").is_empty() && read.unified_folders().is_empty());
        assert_eq!(Hierarchies::parse("nonsense", "- -"), Hierarchies::default());
    }
}
