%% The Erlang peer of `falaj bench`: the same exchanges, counted at the receiver, medians of rounds. Prints "name value" lines.
-module(bench).
-export([actors/1, links/1, serve/0, certificates/1]).

%% ---- rounds --------------------------------------------------------------------------------------------------------------------------

median(Values) -> lists:nth((length(Values) + 1) div 2, lists:sort(Values)).

timed(Run, Units) ->
    Begin = erlang:monotonic_time(nanosecond),
    Run(Units),
    max(erlang:monotonic_time(nanosecond) - Begin, 1) / 1.0e9.

%% Units a second: how many make a round is found by trying.
rate(Run, Seconds, Rounds) ->
    Units = fit(Run, Seconds, 16),
    median([Units / timed(Run, Units) || _ <- lists:seq(1, Rounds)]).

fit(Run, Seconds, Units) ->
    case timed(Run, Units) of
        T when T * 5 >= Seconds -> max(1, trunc(Units * Seconds / T));
        _ -> fit(Run, Seconds, Units * 2)
    end.

say(Name, Value) -> io:format("~s ~.3f~n", [Name, float(Value)]).

numbers([Seconds, Rounds]) -> {to_float(Seconds), list_to_integer(Rounds)}.

to_float(Text) ->
    case string:to_float(Text) of
        {error, no_float} -> float(list_to_integer(Text));
        {Value, _} -> Value
    end.

%% ---- one node ------------------------------------------------------------------------------------------------------------------------

actors(Arguments) ->
    {Seconds, Rounds} = numbers(Arguments),
    {Spawns, Bytes} = lists:unzip([idle(50000) || _ <- lists:seq(1, Rounds)]),
    Main = self(),
    Pair = ring(2, Main),
    say(ping_pong, rate(fun(N) -> play(Pair, N) end, Seconds, Rounds)),
    Counter = spawn(fun() -> count(0) end),
    say(fan_in, rate(fun(N) -> flood(Counter, N) end, Seconds, Rounds)),
    Ring = ring(1000, Main),
    say(ring, rate(fun(N) -> play(Ring, N) end, Seconds, Rounds)),
    say(spawn, median(Spawns)),
    say(idle_actor_bytes, median(Bytes)),
    halt(0).

%% A ring of players that pass {Left, Stamp} on.
ring(Size, Main) ->
    First = spawn(fun() -> receive {next, Next} -> player(Next, Main) end end),
    Last = lists:foldl(fun(_, Next) -> spawn(fun() -> player(Next, Main) end) end, First, lists:seq(2, Size)),
    First ! {next, Last},
    First.

player(Next, Main) ->
    receive
        {0, _} -> Main ! done;
        {Left, Stamp} -> Next ! {Left - 1, Stamp}
    end,
    player(Next, Main).

play(First, Messages) ->
    First ! {Messages, 0},
    receive done -> ok end.

count(Seen) ->
    receive
        {tally, From} -> From ! {tally, Seen};
        {_, _} -> ok
    end,
    count(Seen + 1).

%% Eight senders; each asks once, at its end: mailboxes have no bound here.
flood(Counter, Messages) ->
    Main = self(),
    [spawn(fun() ->
               send(Counter, Messages div 8),
               Counter ! {tally, self()},
               receive {tally, _} -> Main ! sent end
           end) || _ <- lists:seq(1, 8)],
    [receive sent -> ok end || _ <- lists:seq(1, 8)].

send(_, 0) -> ok;
send(To, Left) -> To ! {Left, 0}, send(To, Left - 1).

idle(Count) ->
    erlang:garbage_collect(),
    Main = self(),
    Before = erlang:memory(processes_used),
    Begin = erlang:monotonic_time(nanosecond),
    Spawner = spawn(fun() ->
        [spawn_link(fun() -> Main ! started, receive stop -> ok end end) || _ <- lists:seq(1, Count)],
        receive stop -> exit(stop) end
    end),
    [receive started -> ok end || _ <- lists:seq(1, Count)],
    Time = (erlang:monotonic_time(nanosecond) - Begin) / 1.0e9,
    Bytes = (erlang:memory(processes_used) - Before) / Count,
    Reference = monitor(process, Spawner),
    Spawner ! stop,
    receive {'DOWN', Reference, _, _, _} -> ok end,
    {Count / Time, Bytes}.

%% ---- two nodes ---------------------------------------------------------------------------------------------------------------------

%% Authority, certificate and key (P-256, as ours), as PEM files of both sides in Directory.
certificates([Directory]) ->
    Key = {key, {namedCurve, secp256r1}},
    SubjectAltName = {2, 5, 29, 17},
    Host = {'Extension', SubjectAltName, false, [{iPAddress, <<127, 0, 0, 1>>}, {dNSName, "127.0.0.1"}]},
    Chain = #{root => [Key], intermediates => [], peer => [Key, {extensions, [Host]}]},
    #{server_config := Server, client_config := Client} = public_key:pkix_test_data(#{server_chain => Chain, client_chain => Chain}),
    [write(filename:join(Directory, Name), Config) || {Name, Config} <- [{"server", Server}, {"client", Client}]],
    halt(0).

write(Base, Config) ->
    Pem = fun(Entries) -> public_key:pem_encode([{Type, Der, not_encrypted} || {Type, Der} <- Entries]) end,
    {KeyType, KeyDer} = proplists:get_value(key, Config),
    ok = file:write_file(Base ++ ".crt", Pem([{'Certificate', proplists:get_value(cert, Config)}])),
    ok = file:write_file(Base ++ ".key", Pem([{KeyType, KeyDer}])),
    ok = file:write_file(Base ++ ".ca", Pem([{'Certificate', Der} || Der <- proplists:get_value(cacerts, Config)])).

serve() ->
    register(echo, self()),
    echo(0).

echo(Seen) ->
    receive
        {echo, From, Parcel} -> From ! Parcel, echo(Seen + 1);
        {tally, From} -> From ! {tally, Seen}, echo(Seen + 1);
        _ -> echo(Seen + 1)
    end.

links(Arguments) ->
    {Seconds, Rounds} = numbers(Arguments),
    Node = 'b@127.0.0.1',
    ok = meet(Node, 100),
    Echo = {echo, Node},
    Small = binary:copy(<<"x">>, 100),
    Large = binary:copy(<<"x">>, 1048576),
    PerSecond = rate(fun(N) -> ping(Echo, Small, N, []) end, Seconds, 1),
    Count = max(100, trunc(PerSecond * Seconds)),
    Waits = [lists:sort(ping(Echo, Small, Count, [])) || _ <- lists:seq(1, Rounds)],
    Of = fun(Q) -> median([lists:nth(max(1, trunc(Q * length(W))), W) || W <- Waits]) end,
    say(link_rtt_p50, Of(0.5)),
    say(link_rtt_p99, Of(0.99)),
    say(link_rtt_p999, Of(0.999)),
    say(link_pipelined, rate(fun(N) -> pipelined(Echo, Small, N) end, Seconds, Rounds)),
    say(link_one_way, rate(fun(N) -> one_way(Echo, Small, N) end, Seconds, Rounds)),
    say(link_large, 1048576 * rate(fun(N) -> one_way(Echo, Large, N) end, Seconds, Rounds)),
    halt(0).

meet(Node, 0) -> exit({cannot_connect, Node});
meet(Node, Tries) ->
    case net_adm:ping(Node) of
        pong -> wait_echo(Node, 100);
        pang -> timer:sleep(100), meet(Node, Tries - 1)
    end.

wait_echo(_, 0) -> exit(no_echo);
wait_echo(Node, Tries) ->
    case rpc:call(Node, erlang, whereis, [echo]) of
        Pid when is_pid(Pid) -> ok;
        _ -> timer:sleep(50), wait_echo(Node, Tries - 1)
    end.

%% Microseconds of each.
ping(_, _, 0, Waits) -> Waits;
ping(Echo, Parcel, Left, Waits) ->
    Begin = erlang:monotonic_time(nanosecond),
    Echo ! {echo, self(), Parcel},
    receive Parcel -> ok end,
    ping(Echo, Parcel, Left - 1, [(erlang:monotonic_time(nanosecond) - Begin) / 1000 | Waits]).

pipelined(Echo, Parcel, Count) ->
    Ahead = min(256, Count),
    [Echo ! {echo, self(), Parcel} || _ <- lists:seq(1, Ahead)],
    go_on(Echo, Parcel, Count - Ahead, Count).

go_on(_, _, _, 0) -> ok;
go_on(Echo, Parcel, 0, Open) -> receive Parcel -> go_on(Echo, Parcel, 0, Open - 1) end;
go_on(Echo, Parcel, Left, Open) ->
    receive Parcel -> Echo ! {echo, self(), Parcel} end,
    go_on(Echo, Parcel, Left - 1, Open - 1).

one_way(Echo, Parcel, Count) ->
    [Echo ! {parcel, self(), Parcel} || _ <- lists:seq(1, Count)],
    Echo ! {tally, self()},
    receive {tally, _} -> ok end.
