#include "runtime/host/node.hpp"

#include <algorithm>
#include <stdexcept>

#include "runtime/base/format.hpp"
#include "runtime/base/limits.hpp"
#include "runtime/base/log.hpp"
#include "runtime/host/cell.hpp"
#include "runtime/host/remote.hpp"

namespace falaj {

namespace {

// Stands for an actor that is not there: each message gets the same answer.
class Nobody final : public Target {
 public:
  Nobody(std::shared_ptr<Node> node, ActorAddress address, Error why)
      : node_(std::move(node)), address_(std::move(address)), why_(std::move(why)) {}
  void deliver(std::unique_ptr<Delivery> delivery) override { node_->undeliverable(std::move(delivery), *this, why_); }
  [[nodiscard]] ActorAddress address() const override { return address_; }

 private:
  std::shared_ptr<Node> node_;
  ActorAddress address_;
  Error why_;
};

// Asks for somebody who is no actor. Its function is called once, on a thread of the host: an answer that comes before ask()
// has returned goes through the timers.
class Outsider final : public Target {
 public:
  using Done = std::move_only_function<void(Result<Message>)>;
  Outsider(std::shared_ptr<Node> node, Done done) : node_(std::move(node)), id_(node_->next_id()), done_(std::move(done)) {}

  void deliver(std::unique_ptr<Delivery> d) override {
    if (d->kind == Kind::reply) {
      answer(std::move(d->body));
    } else if (d->kind == Kind::refusal) {
      answer(refusal_error(d->body));
    }
  }
  [[nodiscard]] ActorAddress address() const override { return {node_->id, node_->options.incarnation, id_, {}}; }

  void answer(Result<Message> result) {
    if (answered_.exchange(true, std::memory_order_acq_rel)) {
      node_->late_answer();
      return;
    }
    if (t_asking == this) {
      node_->executor.call_at(node_->now(), [self = ActorRef(this), result = std::move(result)]() mutable {
        static_cast<Outsider*>(self.get())->call(std::move(result));
      });
      return;
    }
    call(std::move(result));
  }
  void ask(Target& to, std::unique_ptr<Delivery> d) {
    t_asking = this;
    to.deliver(std::move(d));
    t_asking = nullptr;
  }
  void arm(Instant deadline) {
    const auto timer = node_->executor.call_at(deadline, [self = ActorRef(this)] {
      static_cast<Outsider*>(self.get())->answer(error(ErrorCode::deadline, "no answer in time; whether it was done is unknown"));
    });
    timer_.store(timer, std::memory_order_release);
  }

 private:
  void call(Result<Message> result) {
    if (const auto timer = timer_.load(std::memory_order_acquire); timer != 0) node_->executor.cancel(timer);
    auto done = std::move(done_);
    done(std::move(result));
  }
  static thread_local const Outsider* t_asking;
  std::shared_ptr<Node> node_;
  ActorId id_;
  Done done_;
  std::atomic<bool> answered_{false};
  std::atomic<std::uint64_t> timer_{0};
};
thread_local const Outsider* Outsider::t_asking = nullptr;

class Root final : public ActorOf<Root> {
 public:
  static constexpr std::string_view kType = "host/root";
  static void handlers(Handlers<Root>&) {}
};

}  // namespace

Node::Node(const HostOptions& opts, Executor& exec)
    : options(opts),
      id(node_id(opts.node_name)),
      random(Random(opts.seed).split(opts.node_name)),
      executor(exec),
      remote_(std::make_unique<Remote>(*this)),
      dead_letters_count_(opts.metrics->counter("falaj_actor_dead_letters_total", "Messages that reached nobody")),
      late_answers_(opts.metrics->counter("falaj_actor_late_answers_total", "Answers that nobody waited for any more")) {}

Node::~Node() = default;

// ---- cells -------------------------------------------------------------------------------------------------------------------------

ActorRef Node::make_cell(const ChildSpec& spec, Cell* parent, std::uint32_t restarts, bool name_must_be_free) {
  CellInit init;
  init.node = shared_from_this();
  init.id = next_id();
  if (parent != nullptr) {
    init.parent_id = parent->id();
    init.parent = ActorRef(parent);
  }
  init.child_id = spec.id;
  init.name = spec.name;
  init.mailbox = spec.mailbox;
  init.restarts = restarts;
  ActorRef cell(executor.make_cell(std::move(init)));
  const auto actor = cell.address().actor;
  const std::unique_lock lock(tables_);
  if (!spec.name.empty()) {
    auto& named = names_[spec.name];
    if (named && name_must_be_free) throw std::invalid_argument(format("child {}: the name {} is taken", spec.id, spec.name));
    named = cell;
    names_version_.fetch_add(1, std::memory_order_release);
  }
  cells_.emplace(actor, cell);
  return cell;
}

void Node::remove(Cell& cell) {
  ActorRef dropped[2];  // let go of after the lock
  const std::unique_lock lock(tables_);
  if (const auto named = names_.find(cell.name()); named != names_.end() && named->second.get() == &cell) {
    dropped[0] = std::move(named->second);
    names_.erase(named);
    names_version_.fetch_add(1, std::memory_order_release);
  }
  if (const auto found = cells_.find(cell.id()); found != cells_.end()) {
    dropped[1] = std::move(found->second);
    cells_.erase(found);
  }
}

ActorRef Node::find_local(std::string_view name) const {
  const std::shared_lock lock(tables_);
  const auto found = names_.find(name);
  return found == names_.end() ? ActorRef{} : found->second;
}

ActorRef Node::find(std::string_view name) {
  if (auto found = here(name)) return found;
  std::shared_ptr<const Directory> directory;
  {
    const std::shared_lock lock(tables_);
    directory = directory_;
  }
  if (!directory) return {};
  const auto address = directory->find(name);
  if (!address || (own(address->node) && address->actor.value() == 0)) return {};
  return at(*address);
}

ActorRef Node::local(ActorId actor) const {
  const std::shared_lock lock(tables_);
  const auto found = cells_.find(actor);
  return found == cells_.end() ? ActorRef{} : found->second;
}

ActorRef Node::nobody(ActorAddress address, Error why) {
  return ActorRef(new Nobody(shared_from_this(), std::move(address), std::move(why)));
}

Status Node::authorize(const Delivery& d, std::string_view verb, std::string_view actor_type, std::string_view message) const {
  static const Scope kNobody;
  if (d.from_node && (!d.scope || verb.empty())) return {};  // the node speaks, or passes on what it was asked
  if (options.authorizer == nullptr) return error(ErrorCode::denied, "no principal has any right on this node: it was given no policy");
  return options.authorizer->allow(d.scope ? *d.scope : kNobody, verb, actor_type, message);
}

ActorRef Node::at(const ActorAddress& address) {
  if (!own(address.node)) return remote_->proxy(address);
  if (address.incarnation.value() != 0 && address.incarnation != options.incarnation)
    return nobody(address, error(ErrorCode::gone, "that incarnation of this node has ended"));
  if (address.actor.value() == 0) {
    auto named = here(address.name);
    return named ? named : nobody(address, error(ErrorCode::not_found, format("no actor named {} on this node", address.name)));
  }
  auto found = local(address.actor);
  return found ? found : nobody(address, error(ErrorCode::gone, "the actor has ended; look its name up again"));
}

void Node::set_directory(std::shared_ptr<const Directory> directory) {
  const std::unique_lock lock(tables_);
  directory_.swap(directory);
}

TypeStats& Node::stats(std::string_view type) {
  const std::scoped_lock lock(stats_mutex_);
  if (const auto found = stats_.find(type); found != stats_.end()) return *found->second;
  auto& m = *options.metrics;
  const metrics::Labels labels{{"type", std::string(type)}};
  auto made =
      std::make_unique<TypeStats>(TypeStats{std::string(type), m.counter("falaj_actor_messages_total", "Messages handled", labels),
                                            m.histogram("falaj_actor_mailbox_wait_seconds", "Time from send to handler (sampled)", labels),
                                            m.histogram("falaj_actor_service_seconds", "Time in the handler (sampled)", labels),
                                            m.gauge("falaj_actor_mailbox_depth", "Messages waiting when one was sampled", labels)});
  return *stats_.emplace(std::string(type), std::move(made)).first->second;
}

std::vector<ActorRef> Node::all_cells() const {
  std::vector<ActorRef> out;
  {
    const std::shared_lock lock(tables_);
    for (const auto& [actor, cell] : cells_) out.push_back(cell);
  }
  std::sort(out.begin(), out.end(),
            [](const ActorRef& a, const ActorRef& b) { return static_cast<Cell*>(a.get())->id() < static_cast<Cell*>(b.get())->id(); });
  return out;
}

std::vector<ActorInfo> Node::actors() const {
  std::vector<ActorInfo> out;
  for (const auto& cell : all_cells()) out.push_back(static_cast<Cell*>(cell.get())->info());
  return out;
}

// ---- the root ------------------------------------------------------------------------------------------------------------------------

void Node::start_root() {
  ChildSpec spec;
  spec.id = "root";
  auto root = make_cell(spec, nullptr, 0, true);
  {
    const std::scoped_lock lock(root_mutex_);
    root_ = root;
  }
  static_cast<Cell*>(root.get())->start([] { return std::make_unique<Root>(); });
}

void Node::poke_root() {
  ActorRef root;
  {
    const std::scoped_lock lock(root_mutex_);
    root = root_;
  }
  auto poke = std::make_unique<Delivery>();
  poke->kind = Kind::poke;
  poke->lane = Lane::control;
  root.get()->deliver(std::move(poke));
}

ActorRef Node::spawn(ChildSpec spec) {
  Supervisor::check(spec);
  ActorRef root;
  {
    const std::scoped_lock lock(root_mutex_);
    if (root_done_) throw std::logic_error(format("child {}: the host has stopped", spec.id));
    if (!root_ids_.insert(spec.id).second) throw std::invalid_argument(format("child {}: the id is taken", spec.id));
    root = root_;
  }
  ActorRef cell;
  try {
    cell = make_cell(spec, static_cast<Cell*>(root.get()), 0, true);
  } catch (...) {
    root_forget(spec.id);
    throw;
  }
  {
    const std::scoped_lock lock(root_mutex_);
    root_work_.push_back(RootWork{std::move(spec), cell, {}});
  }
  poke_root();
  return cell;
}

void Node::stop_child(std::string_view child_id) {
  {
    const std::scoped_lock lock(root_mutex_);
    root_work_.push_back(RootWork{std::nullopt, {}, std::string(child_id)});
  }
  poke_root();
}

void Node::root_work(Cell& root, bool alive) {
  for (;;) {
    RootWork work;
    {
      const std::scoped_lock lock(root_mutex_);
      if (root_work_.empty()) return;
      work = std::move(root_work_.front());
      root_work_.pop_front();
    }
    if (!work.spawn) {
      if (alive) root.stop_child(work.stop);
    } else if (!alive || !root.children().adopt(std::move(*work.spawn), work.cell)) {
      static_cast<Cell*>(work.cell.get())->abandon(error(ErrorCode::gone, "the host is stopping"));
    }
  }
}

void Node::root_forget(const std::string& child_id) {
  const std::scoped_lock lock(root_mutex_);
  root_ids_.erase(child_id);
}

void Node::root_ended(bool failed, const Error& why) {
  std::move_only_function<void(Error)> call;
  std::deque<RootWork> left;
  {
    const std::scoped_lock lock(root_mutex_);
    root_done_ = true;
    left.swap(root_work_);
    if (failed) {
      fatal_ = why;
      call = std::move(on_fatal_);
      on_fatal_ = nullptr;
    }
  }
  for (auto& work : left) {
    if (work.cell) static_cast<Cell*>(work.cell.get())->abandon(error(ErrorCode::gone, "the host is stopping"));
  }
  root_changed_.notify_all();
  if (failed) log::error("host", "the root supervisor failed", {{"node", options.node_name}, {"why", why.message}});
  if (call) call(why);
}

void Node::on_fatal(std::move_only_function<void(Error)> call) {
  std::optional<Error> already;
  {
    const std::scoped_lock lock(root_mutex_);
    if (!fatal_) {
      on_fatal_ = std::move(call);
      return;
    }
    already = fatal_;
  }
  call(*already);
}

void Node::begin_stop_root() {
  ActorRef root;
  {
    const std::scoped_lock lock(root_mutex_);
    root = root_;
  }
  if (!root) return;
  auto stop = std::make_unique<Delivery>();
  stop->kind = Kind::stop;
  stop->lane = Lane::control;
  root.get()->deliver(std::move(stop));
}

bool Node::root_done() const {
  const std::scoped_lock lock(root_mutex_);
  return root_done_;
}

bool Node::stop_root(Duration deadline) {
  begin_stop_root();
  std::unique_lock lock(root_mutex_);
  return root_changed_.wait_for(lock, deadline, [this] { return root_done_; });
}

void Node::abandon_all() {
  for (const auto& cell : all_cells()) {
    auto& c = *static_cast<Cell*>(cell.get());
    c.kill();
    while (c.run(limits::kMessagesPerTurn)) {
    }
  }
  remote_->close();
  const std::scoped_lock lock(root_mutex_);
  root_work_.clear();
  root_ = {};
  on_fatal_ = nullptr;
}

// ---- undeliverable --------------------------------------------------------------------------------------------------------------------

void Node::undeliverable(std::unique_ptr<Delivery> d, Target& to, const Error& why) {
  switch (d->kind) {
    case Kind::ask:
    case Kind::watch: {
      if (!d->from) return;
      auto answer = std::make_unique<Delivery>();
      answer->kind = d->kind == Kind::ask ? Kind::refusal : Kind::down;
      answer->lane = d->kind == Kind::ask ? d->lane : Lane::normal;
      answer->correlation = d->correlation;
      answer->body = refusal_message(why);
      if (d->kind == Kind::watch) answer->from = ActorRef(&to);
      d->from.get()->deliver(std::move(answer));
      return;
    }
    case Kind::tell:
      dead_letter(to.address(), d->body.type(), to_string(why));
      return;
    case Kind::reply:
    case Kind::refusal:
      late_answers_.add();
      return;
    default:
      return;  // a signal to one that has ended
  }
}

void Node::dead_letter(const ActorAddress& to, TypeId type, std::string reason) {
  dead_letters_count_.add();
  const std::scoped_lock lock(letters_mutex_);
  if (letters_.size() >= limits::kDeadLetters) letters_.pop_front();
  letters_.push_back(DeadLetter{options.clock->wall(), to, type, std::move(reason)});
}

std::vector<DeadLetter> Node::dead_letters() const {
  const std::scoped_lock lock(letters_mutex_);
  return {letters_.begin(), letters_.end()};
}

// ---- from outside -----------------------------------------------------------------------------------------------------------------------

void Node::ask(const ActorRef& to, Message message, const SendOptions& opts, std::move_only_function<void(Result<Message>)> done) {
  const auto deadline = now() + (opts.timeout.count() != 0 ? opts.timeout : Duration(limits::kAskDefault));
  auto* outsider = new Outsider(shared_from_this(), std::move(done));
  const ActorRef keep(outsider);
  auto d = std::make_unique<Delivery>();
  d->kind = Kind::ask;
  d->lane = opts.lane;
  d->body = std::move(message);
  d->correlation = CorrelationId(1);
  d->from = keep;
  d->deadline = deadline;
  d->trace = opts.trace;
  d->scope = opts.scope;
  d->from_outside = opts.scope != nullptr;
  outsider->arm(deadline);
  if (to) {
    outsider->ask(*to.get(), std::move(d));
  } else {
    const auto missing = nobody({}, error(ErrorCode::not_found, "no actor of that name is known"));
    outsider->ask(*missing.get(), std::move(d));
  }
}

void Node::tell(const ActorRef& to, Message message, const SendOptions& opts) {
  if (!to) {
    dead_letter({}, message.type(), "not_found: no actor of that name is known");
    return;
  }
  auto d = std::make_unique<Delivery>();
  d->lane = opts.lane;
  d->body = std::move(message);
  d->trace = opts.trace;
  d->scope = opts.scope;
  d->from_outside = opts.scope != nullptr;
  to.get()->deliver(std::move(d));
}

}  // namespace falaj
