#include "storage/memory_disk.hpp"

#include <fcntl.h>

#include <algorithm>
#include <cerrno>

namespace falaj::storage {
namespace {

constexpr std::size_t kSector = 512;

std::string folder_of(const std::string& path) {
  const auto slash = path.rfind('/');
  return slash == std::string::npos || slash == 0 ? "/" : path.substr(0, slash);
}

std::string volume_name(const std::string& path) {
  const auto end = path.find('/', 1);
  return path.substr(0, end);
}

}  // namespace

MemoryDisk::Volume& MemoryDisk::volume_of(const std::string& path) {
  auto& volume = volumes_[volume_name(path)];
  if (volume.names.empty()) {
    auto root = std::make_shared<File>();
    root->folder = true;
    volume.names.emplace(volume_name(path), root);
    volume.durable = volume.names;
  }
  return volume;
}

MemoryDisk::Open* MemoryDisk::find(int fd) {
  const auto found = open_.find(fd);
  if (found == open_.end() || volumes_.at(found->second.volume).off) return nullptr;
  return &found->second;
}

void MemoryDisk::apply(std::map<std::string, Ref>& names, const Change& change) {
  if (!change.from.empty()) names.erase(change.from);
  if (change.file) {
    names[change.to] = change.file;
  } else {
    names.erase(change.to);
  }
}

void MemoryDisk::change(Volume& volume, Change change) {
  apply(volume.names, change);
  volume.pending[folder_of(change.to)].push_back(std::move(change));
}

int MemoryDisk::open(const std::string& path, int flags) {
  auto& volume = volume_of(path);
  if (volume.off) return -EIO;
  auto found = volume.names.find(path);
  if (found != volume.names.end() && (flags & O_EXCL) != 0) return -EEXIST;
  if (found == volume.names.end()) {
    if ((flags & O_CREAT) == 0) return -ENOENT;
    if (volume.full) return -ENOSPC;
    if (!volume.names.contains(folder_of(path))) return -ENOENT;
    change(volume, {{}, path, std::make_shared<File>()});
    found = volume.names.find(path);
  }
  if ((flags & O_TRUNC) != 0) found->second->bytes.clear();
  const int fd = next_++;
  open_.emplace(fd, Open{volume_name(path), path, found->second, 0});
  return fd;
}

void MemoryDisk::close(int fd) noexcept {
  const auto found = open_.find(fd);
  if (found == open_.end()) return;
  auto& file = *found->second.file;
  if (file.exclusive == fd) file.exclusive = -1;
  file.shared.erase(fd);
  open_.erase(found);
}

std::int64_t MemoryDisk::write(int fd, ByteView bytes) {
  auto* o = find(fd);
  if (o == nullptr) return -EIO;
  if (volumes_.at(o->volume).full) return -ENOSPC;
  auto& to = o->file->bytes;
  const auto at = static_cast<std::size_t>(o->position);
  if (to.size() < at + bytes.size()) to.resize(at + bytes.size());
  std::ranges::copy(bytes, to.begin() + o->position);
  o->position += static_cast<std::int64_t>(bytes.size());
  return static_cast<std::int64_t>(bytes.size());
}

std::int64_t MemoryDisk::read(int fd, std::span<std::uint8_t> out) {
  auto* o = find(fd);
  if (o == nullptr) return -EIO;
  const auto& from = o->file->bytes;
  const auto at = std::min(from.size(), static_cast<std::size_t>(o->position));
  const auto n = std::min(out.size(), from.size() - at);
  std::copy_n(from.begin() + static_cast<std::ptrdiff_t>(at), n, out.begin());
  o->position += static_cast<std::int64_t>(n);
  return static_cast<std::int64_t>(n);
}

std::int64_t MemoryDisk::seek(int fd, std::int64_t position) {
  auto* o = find(fd);
  if (o == nullptr) return -EIO;
  return o->position = position;
}

int MemoryDisk::truncate(int fd, std::int64_t size) {
  auto* o = find(fd);
  if (o == nullptr) return -EIO;
  o->file->bytes.resize(static_cast<std::size_t>(size));
  return 0;
}

int MemoryDisk::sync(int fd) {
  auto* o = find(fd);
  if (o == nullptr) return -EIO;
  auto& volume = volumes_.at(o->volume);
  if (!o->file->folder) {
    o->file->synced = o->file->bytes;
    return 0;
  }
  const auto pending = volume.pending.find(o->path);
  if (pending == volume.pending.end()) return 0;
  for (const auto& one : pending->second) apply(volume.durable, one);
  volume.pending.erase(pending);
  return 0;
}

std::int64_t MemoryDisk::size(const std::string& path) {
  auto& volume = volume_of(path);
  if (volume.off) return -EIO;
  const auto found = volume.names.find(path);
  return found == volume.names.end() ? -ENOENT : static_cast<std::int64_t>(found->second->bytes.size());
}

bool MemoryDisk::is_folder(const std::string& path) {
  if (path == "/") return true;
  auto& volume = volume_of(path);
  const auto found = volume.names.find(path);
  return !volume.off && found != volume.names.end() && found->second->folder;
}

int MemoryDisk::make_folder(const std::string& path) {
  auto& volume = volume_of(path);
  if (volume.off) return -EIO;
  if (volume.names.contains(path)) return -EEXIST;
  auto folder = std::make_shared<File>();
  folder->folder = true;
  change(volume, {{}, path, std::move(folder)});
  return 0;
}

int MemoryDisk::rename(const std::string& from, const std::string& to) {
  auto& volume = volume_of(from);
  if (volume.off) return -EIO;
  const auto found = volume.names.find(from);
  if (found == volume.names.end()) return -ENOENT;
  change(volume, {from, to, found->second});
  return 0;
}

int MemoryDisk::unlink(const std::string& path) {
  auto& volume = volume_of(path);
  if (volume.off) return -EIO;
  if (!volume.names.contains(path)) return -ENOENT;
  change(volume, {{}, path, nullptr});
  return 0;
}

int MemoryDisk::list(const std::string& path, std::vector<std::string>& names) {
  auto& volume = volume_of(path);
  if (volume.off) return -EIO;
  if (!volume.names.contains(path)) return -ENOENT;
  const auto prefix = path + "/";
  for (auto at = volume.names.lower_bound(prefix); at != volume.names.end() && at->first.starts_with(prefix); ++at) {
    if (at->first.find('/', prefix.size()) == std::string::npos) names.push_back(at->first.substr(prefix.size()));
  }
  return 0;
}

int MemoryDisk::lock(int fd, Lock how) {
  auto* o = find(fd);
  if (o == nullptr) return -EIO;
  auto& file = *o->file;
  const bool others = std::ranges::any_of(file.shared, [fd](const auto& holder) { return holder.first != fd; });
  const bool exclusive = file.exclusive >= 0 && file.exclusive != fd;
  if (exclusive || (how == Lock::exclusive && others)) return -EAGAIN;
  file.exclusive = how == Lock::exclusive ? fd : -1;
  if (how == Lock::shared) {
    file.shared[fd] = true;
  } else {
    file.shared.erase(fd);
  }
  return 0;
}

bool MemoryDisk::locked(const std::string& path) {
  auto& volume = volume_of(path);
  const auto found = volume.names.find(path);
  return !volume.off && found != volume.names.end() && (found->second->exclusive >= 0 || !found->second->shared.empty());
}

// ---- faults ---------------------------------------------------------------------------------------------------------------------

void MemoryDisk::power_off(const std::string& volume) { volume_of(volume).off = true; }

void MemoryDisk::set_full(const std::string& volume, bool full) { volume_of(volume).full = full; }

void MemoryDisk::survive(File& file, Random& random) {
  file.exclusive = -1;
  file.shared.clear();
  if (file.bytes != file.synced) {
    const auto what = random.below(4);
    if (what == 0) {
      file.bytes = file.synced;
    } else if (what >= 2) {
      // Front to back: the file is new up to a byte, and as it was behind that.
      const auto first = std::ranges::mismatch(file.bytes, file.synced).in1 - file.bytes.begin();
      const auto cut = static_cast<std::size_t>(first) + random.below(file.bytes.size() - static_cast<std::size_t>(first) + 1);
      Bytes torn(file.bytes.begin(), file.bytes.begin() + static_cast<std::ptrdiff_t>(cut));
      if (cut < file.synced.size()) torn.insert(torn.end(), file.synced.begin() + static_cast<std::ptrdiff_t>(cut), file.synced.end());
      if (what == 3 && cut > file.synced.size()) {
        // The length was written, the last sector was not.
        const auto lost = std::min({cut - file.synced.size(), cut - static_cast<std::size_t>(first), kSector});
        std::fill(torn.begin() + static_cast<std::ptrdiff_t>(cut - lost), torn.begin() + static_cast<std::ptrdiff_t>(cut), 0);
      }
      file.bytes = std::move(torn);
    }
  }
  file.synced = file.bytes;
}

void MemoryDisk::resume(const std::string& name) {
  auto& volume = volume_of(name);
  volume.off = false;
  std::vector<int> left;
  for (const auto& [fd, open] : open_) {
    if (open.volume == volume_name(name)) left.push_back(fd);
  }
  for (const auto fd : left) close(fd);
}

void MemoryDisk::power_on(const std::string& name, Random& random) {
  auto& volume = volume_of(name);
  if (!volume.off) return;
  resume(name);
  for (auto& [folder, changes] : volume.pending) {
    const auto kept = random.below(changes.size() + 1);
    for (std::size_t i = 0; i < kept; ++i) apply(volume.durable, changes[i]);
  }
  volume.pending.clear();
  volume.names = volume.durable;
  for (auto& [path, file] : volume.names) survive(*file, random);
}

}  // namespace falaj::storage
