"""What people say to a car: phrasings with slots, and the call that each one means.

A phrasing is text with slots in braces; `fixed` are arguments that it implies without saying a value. The order of the
table matters: which phrasings are held out follows from their places in it (workload.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class PhrasingGroup:
    """Phrasings of one function that fill the same arguments."""

    function: str
    texts: Sequence[str]
    fixed: Mapping[str, object] = field(default_factory=dict)


def _lines(text: str) -> Sequence[str]:
    return tuple(line.strip() for line in text.strip().splitlines())


GROUPS: Sequence[PhrasingGroup] = (
    PhrasingGroup("climate", _lines("""
        set the temperature to {celsius} {zone}
        make it {celsius} {zone}
        {celsius} {zone}
        put the heating at {celsius} {zone}
        I want {celsius} {zone}
        climate to {celsius} {zone}
        change the temperature {zone} to {celsius}
        turn the climate {zone} to {celsius}
        {zone} I'd like {celsius}
        let's have {celsius} {zone}
        adjust the air conditioning to {celsius} {zone}
        can we have {celsius} {zone}
        bring it to {celsius} {zone}
        air con to {celsius} {zone}
        I need it at {celsius} {zone}
        heat up to {celsius} {zone}
        cool it down to {celsius} {zone}
        temperature {zone} {celsius}
        the climate {zone} to {celsius}
        the temperature {zone} should be {celsius}
        we need {celsius} {zone}
        keep it at {celsius} {zone}
        make the air {zone} {celsius}
        switch the climate control to {celsius} {zone}
        hold {celsius} {zone}
        """)),
    PhrasingGroup("climate", _lines("""
        set the temperature to {celsius}
        make it {celsius} in here
        {celsius} in the car
        put the heating at {celsius}
        the whole car at {celsius}
        climate to {celsius} for everyone
        change the temperature to {celsius} everywhere
        all zones to {celsius}
        """), {"zone": "all"}),
    PhrasingGroup("seat_heating", _lines("""
        turn {seat} seat heating to {heat}
        set {seat} seat heating to {heat}
        {seat} seat heater on {heat}
        warm {seat} seat, level {heat}
        heat {seat} seat at {heat}
        put {seat} seat heating on {heat}
        seat heating to {heat} for {seat} seat
        I want {seat} seat warm, {heat}
        {seat} seat heating {heat}
        make {seat} seat warmer, level {heat}
        switch {seat} seat heater to {heat}
        adjust the heating of {seat} seat to {heat}
        give {seat} seat heat level {heat}
        set the heater of {seat} seat to {heat}
        change {seat} seat heating to {heat}
        bring {seat} seat heating to {heat}
        level {heat} on {seat} heated seat
        {seat} heated seat to {heat}
        """)),
    PhrasingGroup("seat_heating", _lines("""
        turn off {seat} seat heating
        switch {seat} seat heater off
        no more heating for {seat} seat
        {seat} seat is too hot, turn the heating off
        stop heating {seat} seat
        {seat} seat heating off
        disable {seat} seat heater
        """), {"level": 0}),
    PhrasingGroup("window", _lines("""
        open {window}
        roll down {window}
        {window} down
        let {window} down
        lower {window}
        wind down {window}
        I want {window} open
        get some air through {window}, open it
        {window} open
        put {window} down
        open up {window}
        bring {window} down
        slide {window} open
        """), {"position": "open"}),
    PhrasingGroup("window", _lines("""
        close {window}
        roll up {window}
        {window} up
        shut {window}
        wind up {window}
        I want {window} closed
        it is loud, close {window}
        {window} closed
        put {window} up
        bring {window} up
        slide {window} shut
        raise {window}
        """), {"position": "closed"}),
    PhrasingGroup("window", _lines("""
        open {window} halfway
        {window} half down
        {window} half open
        roll {window} down half
        put {window} down halfway
        open {window} just half
        lower {window} halfway
        """), {"position": "half"}),
    PhrasingGroup("light", _lines("""
        turn on {light}
        switch {light} on
        {light} on
        I need {light}
        put {light} on
        light up {light}
        activate {light}
        give me {light}
        it's dark, turn on {light}
        enable {light}
        """), {"state": "on"}),
    PhrasingGroup("light", _lines("""
        turn off {light}
        switch {light} off
        {light} off
        I don't need {light} any more
        put {light} out
        kill {light}
        deactivate {light}
        no more {light}
        it's too bright, turn off {light}
        disable {light}
        """), {"state": "off"}),
    PhrasingGroup("ambient", _lines("""
        make the ambient light {color}
        ambient light to {color}
        set the mood light to {color}
        {color} ambient light
        I'd like {color} light in here
        change the interior light to {color}
        turn the ambient lighting {color}
        give us a {color} mood
        switch the cabin light to {color}
        paint the cabin {color}
        """)),
    PhrasingGroup("navigate", _lines("""
        take me to {place}
        navigate to {place}
        drive to {place}
        directions to {place}
        let's go to {place}
        I want to go to {place}
        route to {place}
        set the destination to {place}
        bring me to {place}
        we are going to {place}
        how do I get to {place}
        head to {place}
        start navigation to {place}
        guide me to {place}
        show me the way to {place}
        plan a route to {place}
        get me to {place}
        destination {place}
        go to {place}
        I have to be at {place}
        """)),
    PhrasingGroup("navigate", _lines("""
        take me to {place} without {avoid}
        navigate to {place} but avoid {avoid}
        drive to {place}, no {avoid}
        route to {place} avoiding {avoid}
        let's go to {place} and skip {avoid}
        directions to {place} without {avoid}
        get me to {place}, avoid {avoid}
        go to {place} but without {avoid}
        bring me to {place} with no {avoid}
        """)),
    PhrasingGroup("find", _lines("""
        find {kind} {where}
        is there {kind} {where}
        show me {kind} {where}
        look for {kind} {where}
        where is {kind} {where}
        I need {kind} {where}
        search for {kind} {where}
        any chance of {kind} {where}
        find me {kind} {where}
        {kind} {where}
        can you find {kind} {where}
        I'm looking for {kind} {where}
        list {kind} {where}
        do we pass {kind} {where}
        locate {kind} {where}
        """)),
    PhrasingGroup("play", _lines("""
        play {music}
        put on {music}
        I want to hear {music}
        start {music}
        let's listen to {music}
        can you play {music}
        play some {music}
        I feel like {music}
        turn on {music}
        give me {music}
        how about {music}
        music: {music}
        let me hear {music}
        switch to {music}
        queue {music}
        I'm in the mood for {music}
        """)),
    PhrasingGroup("volume", _lines("""
        set the volume to {level}
        volume {level}
        turn the music to {level}
        make the volume {level}
        put the sound at {level}
        change the volume to {level}
        sound level {level}
        turn it to volume {level}
        audio to {level}
        volume to {level}
        loudness {level}
        adjust the sound to {level}
        """)),
    PhrasingGroup("volume", _lines("""
        mute
        mute the music
        silence please
        sound off
        turn the sound off
        no sound
        volume to zero
        """), {"level": 0}),
    PhrasingGroup("call", _lines("""
        call {contact}
        phone {contact}
        ring {contact}
        dial {contact}
        I want to talk to {contact}
        give {contact} a call
        make a call to {contact}
        get {contact} on the phone
        call up {contact}
        start a call with {contact}
        I need to speak to {contact}
        place a call to {contact}
        give {contact} a ring
        can you call {contact}
        """)),
    PhrasingGroup("message", _lines("""
        tell {contact} {news}
        text {contact} that {news}
        send {contact} a message: {news}
        message {contact} that {news}
        let {contact} know that {news}
        write to {contact} that {news}
        text {contact}: {news}
        send a message to {contact} saying {news}
        message {contact}: {news}
        drop {contact} a line that {news}
        inform {contact} that {news}
        write {contact}: {news}
        """)),
    PhrasingGroup("charge_limit", _lines("""
        charge the car to {charge}
        set the charge limit to {charge}
        stop charging at {charge}
        charge up to {charge}
        limit charging to {charge}
        battery to {charge}
        charging limit {charge}
        fill the battery to {charge}
        only charge until {charge}
        don't charge over {charge}
        I want {charge} in the battery
        load the battery to {charge}
        """)),
    PhrasingGroup("none", _lines("""
        what is the capital of {country}
        how old is the president of {country}
        write a poem about {topic}
        tell me a joke about {topic}
        what do you think about {topic}
        who invented {topic}
        translate {topic} into French
        how do I cook {dish}
        order {dish} for me
        what is in {dish}
        give me a recipe for {dish}
        how many people live in {country}
        what language do they speak in {country}
        book a flight to {country}
        explain {topic} to me
        buy stocks of a company that makes {topic}
        what's the history of {topic}
        who won the match against {country}
        remind me to read about {topic}
        what is seven times eight
        are you a person
        sing something about {topic}
        how far is the moon
        do my homework about {topic}
        """)),
)

# After an answer that was right, a person may go on: the function of the call before, phrasing, arguments that change.
FOLLOW_UPS: Sequence[tuple[str, str]] = (
    ("climate", "and the same {zone}"),
    ("climate", "also {zone}"),
    ("climate", "{zone} too"),
    ("climate", "actually make it {celsius}"),
    ("climate", "no, {celsius}"),
    ("climate", "{celsius} is better"),
    ("seat_heating", "and the same for {seat} seat"),
    ("seat_heating", "{seat} seat too"),
    ("seat_heating", "make that {heat}"),
    ("seat_heating", "no, level {heat}"),
    ("window", "and {window} too"),
    ("window", "{window} as well"),
    ("navigate", "but avoid {avoid}"),
    ("navigate", "without {avoid}"),
    ("navigate", "no, to {place}"),
    ("play", "no, {music} instead"),
    ("play", "rather {music}"),
    ("volume", "no, {level}"),
    ("volume", "make that {level}"),
    ("call", "no, {contact}"),
    ("call", "I meant {contact}"),
    ("charge_limit", "make it {charge}"),
    ("charge_limit", "no, {charge}"),
)
